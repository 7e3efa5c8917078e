"""DCGAN: what its phases move, its regularisers in training, its classes, its sizes, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from contract_cases import ROOT, SGD, make_batch, step_batch
from specs import data_of

from jgen import api
from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.generate import sample_images
from jgen.core.model import Context
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.gan.dcgan import Config, make
from jgen.nn.conv import Conv
from jgen.nn.dcgan import Discriminator, Generator
from jgen.prob.pixels import to_float, to_uint8
from jgen.train import checkpoints
from jgen.train.config import Config as Train
from jgen.train.config import Optimiser
from jgen.train.optimisers import make_optimiser
from jgen.train.packing import pack_roles
from jgen.train.step import init_state, make_train_step, place_state

DATA = data_of(8, 8, 1, 256, num_classes=10)
SMALL = Config(channels=(4, 8), latent=6)
SPECTRAL = dataclasses.replace(SMALL, disc_norm="spectral", loss="hinge")
LAZY = dataclasses.replace(SPECTRAL, channels=(4,), regulariser="r1", penalty_weight=2.0, penalty_every=3)
WGAN = dataclasses.replace(SMALL, loss="wasserstein", channels=(4,), disc_norm="none")


def started(config, size=16):
    """A model, its first parameters and their context, a batch and the batch's keys."""
    model = make(config, DATA)
    batch = make_batch(model, size)
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    keys = rng.image_keys(jax.random.key(1), jnp.arange(size))
    return model, params, Context(jnp.int32(0), ema=params, extra=extra), batch, keys


def training(config, optimiser=SGD, phases=slice(None)):
    """(model with some of its phases, its state, its step)."""
    whole = make(config, DATA)
    model = whole._replace(phases=whole.phases[phases])
    optimisers = {role: make_optimiser(Train(optimiser=optimiser), role) for role in ("gen", "disc")}
    state = jax.jit(lambda b: init_state(whole, optimisers, jax.random.key(0), b, True))(make_batch(model))
    # Equal to the bit: in one program, rounding may differ.
    state = state._replace(ema=pack_roles({"gen": state.params["gen"]}))
    return model, place_state(model, state), make_train_step(model, optimisers, ema_decay=lambda step: 0.9)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("number,role", [(0, "disc"), (1, "disc"), (2, "gen")])
def test_only_the_network_of_a_phase_moves(number, role):
    model, state, step = training(LAZY, Optimiser(), slice(number, number + 1))
    before = jax.device_get(state)
    state, metrics = step(state, {}, step_batch(model), 0)
    after = jax.device_get(state)
    other = {"gen": "disc", "disc": "gen"}[role]
    assert set(before.ema) == set(after.ema) == {"gen"}  # the discriminator is not averaged
    assert same(before.ema["gen"], after.ema["gen"]) == (role == "disc")
    for part in ("params", "opt", "extra"):
        old, new = getattr(before, part), getattr(after, part)
        assert same(old[other], new[other]), part
        statistics_rest = part == "extra" and number == 1  # the penalty leaves the power iteration to the loss
        assert same(old[role], new[role]) == statistics_rest, part
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.slow
def test_a_lazy_penalty_is_taken_in_its_steps_and_that_much_stronger():
    """By plain gradient descent: the step of the penalty's phase is -rate * every * weight * its gradient."""
    model, state, step = training(LAZY, SGD, slice(1, 2))
    before = jax.device_get(state)
    batch = step_batch(model)
    ctx = Context(before.step, ema=before.params, extra=before.extra)
    keys = rng.image_keys(rng.phase_key(before.key, 0, 0, 0), jnp.arange(len(batch["label"])))
    once = make(dataclasses.replace(LAZY, penalty_weight=1.0, penalty_every=1), DATA)

    @jax.jit
    def penalty(disc):
        return once.phases[0].loss({**before.params, "disc": disc}, ctx, keys, batch)[1][0]["penalty"]

    gradient = jax.grad(penalty)(before.params["disc"])
    assert largest(gradient) > 1e-4
    state, metrics = step(state, {}, batch, 0)
    np.testing.assert_allclose(metrics["penalty"], penalty(before.params["disc"]), rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - SGD.learning_rate * 2.0 * 3 * g, before.params["disc"], gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), state.params["disc"], expected)


@pytest.mark.slow
def test_it_logs_what_shows_a_collapse_and_computes_in_bfloat16():
    changes = {"loss": "least_squares", "regulariser": "gradient_penalty", "conditioning": "concatenation"}
    model, state, step = training(dataclasses.replace(WGAN, dtype="bfloat16", **changes), Optimiser())
    before = jax.device_get(state.params)
    state, metrics = step(state, {}, step_batch(model), 0)
    logged = {"loss_disc", "loss_gen", "grad_norm_disc", "grad_norm_gen", "accuracy_real", "accuracy_fake"}
    assert logged | {"diversity", "penalty"} <= metrics.keys() and np.isfinite(list(metrics.values())).all()
    assert not same(before["gen"], state.params["gen"]) and not same(before["disc"], state.params["disc"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.extra)))


def largest(tree):
    """The largest absolute value of all leaves."""
    return max(float(jnp.max(jnp.abs(w))) for w in jax.tree.leaves(tree))


@pytest.mark.slow
def test_clipped_weights_stay_within_their_bound():
    config = dataclasses.replace(WGAN, regulariser="clip", clip=0.005, disc_steps=2)
    model, state, step = training(config, Optimiser(learning_rate=0.1), slice(0, 1))
    before = jax.device_get(state.params)
    state, _ = step(state, {}, step_batch(model), 0)
    assert largest(before["disc"]) > 0.01
    np.testing.assert_allclose(largest(state.params["disc"]), 0.005, rtol=1e-6)
    assert same(before["gen"], state.params["gen"])


@pytest.mark.slow
def test_spectral_vectors_follow_the_weights_to_their_largest_singular_value():
    model, params, ctx, batch, keys = started(dataclasses.replace(SPECTRAL, channels=(4,)))
    disc_loss = jax.jit(model.phases[0].loss)
    extra = ctx.extra
    for _ in range(100):
        _, (_, new) = disc_loss(params, ctx._replace(extra=extra), keys, batch)
        extra = {**extra, **new}
    assert extra["disc"]["u"].keys() == {"down1", "dense", "classes"}
    for name, u in extra["disc"]["u"].items():
        matrix = np.asarray(params["disc"][name]["kernel"], np.float64).reshape(-1, len(u))
        np.testing.assert_allclose(np.linalg.norm(matrix @ np.asarray(u)), np.linalg.svd(matrix)[1][0], rtol=1e-3)


@pytest.mark.slow
def test_diversity_falls_to_zero_when_the_generator_forgets_its_latent():
    model, params, ctx, batch, keys = started(SMALL, size=32)
    loss = jax.jit(model.phases[0].loss)
    healthy = loss(params, ctx, keys, batch)[1][0]["diversity"]
    kernel = params["gen"]["dense"]["kernel"].at[: SMALL.latent].set(0.0)  # what is left is the class
    collapsed = {**params, "gen": {**params["gen"], "dense": {"kernel": kernel}}}
    diversity = loss(collapsed, ctx, keys, batch)[1][0]["diversity"]
    assert diversity < 1e-3 < 0.01 < healthy


@pytest.mark.slow
def test_samples_and_their_mirror_decode_use_running_statistics():
    model, params, ctx, _, keys = started(SMALL)
    label = jnp.arange(16) % 10
    cond = {"label": label}
    sample, decode = jax.jit(model.sample), jax.jit(model.decode)
    images = sample(params, ctx, keys, cond)
    np.testing.assert_array_equal(sample(params, ctx, keys[3:4], {"label": label[3:4]})[0], images[3])
    z = rng.normal(keys, (SMALL.latent,))
    np.testing.assert_array_equal(decode(params, ctx, keys, z, cond), images)
    assert np.any(images != sample(params, ctx, keys, {"label": (label + 1) % 10}))
    moved = {**ctx.extra, "gen": jax.tree.map(lambda s: s + 1.0, ctx.extra["gen"])}
    assert np.any(images != sample(params, ctx._replace(extra=moved), keys, cond))


def nearly_equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.allclose(x, y, rtol=1e-4, atol=1e-6), a, b)))


@pytest.mark.slow
def test_running_statistics_are_kept_of_the_trained_and_of_the_averaged_generator():
    """Whose activations differ: BatchNorm's plain formula, by hand. Samples take those of the weights given."""
    model, params, ctx, batch, keys = started(SMALL)
    params = jax.tree.map(lambda w: 10.0 * w, params)  # those at the start make images of one grey
    ctx = ctx._replace(ema=jax.tree.map(lambda w: 1.5 * w, params))
    extra = jax.jit(model.phases[-1].loss)(params, ctx, keys, batch)[1][1]
    z = jnp.concatenate([rng.normal(keys, (SMALL.latent,)), jax.nn.one_hot(batch["label"], 10)], axis=-1)
    generator = Generator(SMALL.channels, DATA.image, 0.9, jnp.float32)

    def train(variables):
        return generator.apply(variables, z, True, mutable=["batch_stats"])[1]["batch_stats"]

    sample, cond = jax.jit(model.sample), {"label": batch["label"]}
    for which, weights in (("averaged", ctx.ema), ("trained", params)):
        variables = {"params": weights["gen"], "batch_stats": ctx.extra["gen"][which]}
        expected = jax.jit(train)(variables)
        other = {"averaged": "trained", "trained": "averaged"}[which]
        assert nearly_equal(extra["gen"][which], expected) and not nearly_equal(extra["gen"][other], expected)
        given = ctx._replace(extra={**ctx.extra, **extra}, averaged=which == "averaged")
        x = generator.apply({"params": weights["gen"], "batch_stats": extra["gen"][which]}, z, False)
        images = [sample(weights, given._replace(averaged=flag), keys, cond) for flag in (True, False)]
        right, wrong = images if which == "averaged" else images[::-1]
        by_hand = to_uint8(x, 256).astype(int)
        assert np.abs(right - by_hand).max() <= 1 and np.abs(wrong - by_hand).max() > 5 and np.ptp(right) > 100


@pytest.mark.slow
def test_validation_is_whether_the_discriminator_is_right_about_an_example():
    model, params, ctx, batch, keys = started(SMALL)
    validate = jax.jit(model.validate)
    network = Discriminator(SMALL.channels, True, "projection", 0.9, jnp.float32)
    shift = {"real": 0.1, "fake": -0.2}  # so that each kind is seen to be judged by its own statistics
    norm = {
        kind: jax.tree.map(functools.partial(jnp.add, shift[kind]), s) for kind, s in ctx.extra["disc"]["norm"].items()
    }
    ctx = ctx._replace(extra={**ctx.extra, "disc": {**ctx.extra["disc"], "norm": norm}})
    classes = jax.nn.one_hot(batch["label"], 10)

    @functools.partial(jax.jit, static_argnums=1)
    def judge(x, kind):
        return network.apply({"params": params["disc"], "batch_stats": norm[kind]}, x, classes, False)

    generator = Generator(SMALL.channels, DATA.image, 0.9, jnp.float32)
    z = jnp.concatenate([rng.normal(keys, (SMALL.latent,)), classes], axis=-1)
    weights = {"params": params["gen"], "batch_stats": ctx.extra["gen"]["averaged"]}
    made = jax.jit(lambda weights: generator.apply(weights, z, False))(weights)
    real, fake = judge(to_float(batch["image"], 256), "real"), judge(made, "fake")
    for boundary, outputs, name in ((np.median(real), real, "real"), (np.median(fake), fake, "fake")):
        accuracy = validate(add_to_the_critic(params, -boundary), ctx, keys, batch)[f"accuracy_{name}"]
        far = np.abs(outputs - boundary) > 0.1 * np.std(outputs)
        right = (outputs > boundary) == (name == "real")
        assert accuracy.dtype == jnp.float32 and far.sum() > 8 and 0 < right[far].sum() < far.sum()
        np.testing.assert_array_equal(accuracy[far], right[far].astype(np.float32))
    whole = validate(params, ctx, keys, batch)
    few = validate(params, ctx, keys[:4], {name: value[:4] for name, value in batch.items()})
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:4]), few, whole)
    for bias, expected in ((1e3, (1.0, 0.0)), (-1e3, (0.0, 1.0))):
        scores = validate(add_to_the_critic(params, bias), ctx, keys, batch)
        assert tuple(float(jnp.mean(scores[name])) for name in ("accuracy_real", "accuracy_fake")) == expected


@pytest.mark.slow
def test_a_critics_accuracy_on_an_example_does_not_depend_on_the_others():
    """The boundary is that of training; of a mean over the examples it would be another for each batch."""
    model, params, ctx, batch, keys = started(dataclasses.replace(WGAN, regulariser="clip"))
    extra = jax.jit(model.phases[0].loss)(params, ctx, keys, batch)[1][1]
    network = Discriminator(WGAN.channels, False, "projection", 0.9, jnp.float32)
    classes = jax.nn.one_hot(batch["label"], 10)
    z = jnp.concatenate([rng.normal(rng.split(keys, 2)[0], (WGAN.latent,)), classes], axis=-1)
    variables = {"params": params["gen"], "batch_stats": ctx.extra["gen"]["trained"]}
    made, _ = Generator(WGAN.channels, DATA.image, 0.9, jnp.float32).apply(variables, z, True, mutable=["batch_stats"])
    means = [
        np.mean(network.apply({"params": params["disc"]}, x, classes, True))
        for x in (to_float(batch["image"], 256), made)
    ]
    np.testing.assert_allclose(extra["disc"]["boundary"], np.mean(means), rtol=1e-4, atol=1e-7)
    ctx = ctx._replace(extra={**ctx.extra, **extra})
    whole = jax.jit(model.validate)(params, ctx, keys, batch)
    for i in range(16):
        one = model.validate(params, ctx, keys[i : i + 1], {name: array[i : i + 1] for name, array in batch.items()})
        assert {name: float(flag[0]) for name, flag in one.items()} == {n: float(f[i]) for n, f in whole.items()}


def add_to_the_critic(params, constant):
    dense = params["disc"]["dense"]
    return {**params, "disc": {**params["disc"], "dense": {**dense, "bias": dense["bias"] + constant}}}


def test_a_wasserstein_critics_accuracy_does_not_depend_on_a_constant():
    model, params, ctx, batch, keys = started(dataclasses.replace(WGAN, regulariser="clip"))

    @jax.jit
    def accuracies(params):
        metrics, extra = model.phases[0].loss(params, ctx, keys, batch)[1]
        return metrics, model.validate(params, ctx._replace(extra={**ctx.extra, **extra}), keys, batch)

    names = ("accuracy_real", "accuracy_fake")
    for plain, moved in zip(accuracies(params), accuracies(add_to_the_critic(params, 8.0))):
        for name in names:
            np.testing.assert_array_equal(plain[name], moved[name])
        assert sum(float(jnp.mean(plain[name])) for name in names) > 0.9  # both halves of what it tells apart


@pytest.mark.slow
def test_an_auxiliary_classifier_adds_its_cross_entropy_to_both_losses():
    """To D's of real and of generated images, to G's of generated ones (Odena 2017): by a plain formula."""
    config = dataclasses.replace(SMALL, channels=(4,), conditioning="auxiliary", disc_norm="none", loss="hinge")
    model, params, ctx, batch, keys = started(config)
    params["disc"] = jax.tree.map(lambda w: 10 * w, params["disc"])  # so that it has an opinion
    disc, one_hot = params["disc"], np.eye(10)[batch["label"]]
    assert disc["auxiliary"]["kernel"].shape == (64, 10) and disc["down1"]["kernel"].shape[2] == 1

    @jax.jit
    def fake_images(keys):
        z = jnp.concatenate([rng.normal(keys, (6,)), jnp.asarray(one_hot, jnp.float32)], axis=-1)
        variables = {"params": params["gen"], "batch_stats": ctx.extra["gen"]["trained"]}
        return Generator((4,), DATA.image, 0.9, jnp.float32).apply(variables, z, True, mutable=["batch_stats"])[0]

    def judge(x):
        """(D(x), cross-entropy, the class that is read) of each image."""
        h = np.asarray(Conv(4, 4, 2).apply({"params": disc["down1"]}, x))
        h = np.where(h > 0, h, 0.2 * h).reshape(16, -1)
        layers = (jax.device_get(disc[name]) for name in ("dense", "auxiliary"))
        out, logits = (h @ layer["kernel"] + layer["bias"] for layer in layers)
        return out[:, 0], -np.sum(one_hot * scipy.special.log_softmax(logits, axis=1), axis=1), logits.argmax(1)

    real, fake = judge(to_float(batch["image"], 256)), judge(fake_images(rng.split(keys, 2)[0]))
    wanted = np.maximum(0, 1 - real[0]) + np.maximum(0, 1 + fake[0]) + real[1] + fake[1]
    loss, (metrics, _) = jax.jit(model.phases[0].loss)(params, ctx, keys, batch)
    np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["classes_real"], np.mean(real[2] == batch["label"]), atol=1e-6)
    fake = judge(fake_images(keys))
    np.testing.assert_allclose(jax.jit(model.phases[1].loss)(params, ctx, keys, batch)[0], np.mean(fake[1] - fake[0]))


@pytest.mark.parametrize("conditioning", ["projection", "concatenation", "none"])
def test_what_the_discriminator_does_with_the_class(conditioning):
    """Projection adds <embedding, features>, concatenation reads the class's maps, none knows of no class."""
    config = dataclasses.replace(SMALL, conditioning=conditioning, disc_norm="none", loss="wasserstein")
    model, params, ctx, batch, keys = started(dataclasses.replace(config, regulariser="clip"))
    loss = jax.jit(lambda params, batch: model.phases[1].loss(params, ctx, keys, batch)[0])
    other = {**batch, "label": (batch["label"] + 1) % 10}
    disc = params["disc"]
    assert ("classes" in disc) == (conditioning == "projection")
    assert disc["down1"]["kernel"].shape[2] == (11 if conditioning == "concatenation" else 1)
    if conditioning == "none":
        assert not model.conditions and loss(params, batch) == loss(params, other)
        return
    assert loss(params, batch) != loss(params, other)
    if conditioning == "concatenation":
        network = Discriminator(SMALL.channels, False, conditioning, 0.9, jnp.float32)
        x = to_float(batch["image"], 256)
        judge = jax.jit(lambda disc, label: network.apply({"params": disc}, x, jax.nn.one_hot(label, 10), True))
        kernel, bias = disc["down1"]["kernel"], disc["down1"]["bias"]
        deaf = {**disc, "down1": {"kernel": kernel.at[:, :, 1:].set(0.0), "bias": bias}}
        assert np.all(judge(disc, batch["label"]) != judge(disc, other["label"]))
        np.testing.assert_array_equal(judge(deaf, batch["label"]), judge(deaf, other["label"]))
    if conditioning == "projection":
        # L_G = -E D is linear in the embedding: with no dense layer only <embedding, features> is left.
        only = {**disc, "dense": jax.tree.map(jnp.zeros_like, disc["dense"])}
        double = {**only, "classes": {"kernel": 2 * disc["classes"]["kernel"]}}
        once, twice = (loss({**params, "disc": d}, batch) for d in (only, double))
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)
        rest = {**disc, "classes": jax.tree.map(jnp.zeros_like, disc["classes"])}
        np.testing.assert_allclose(loss(params, batch), once + loss({**params, "disc": rest}, batch), rtol=1e-5)


@pytest.mark.parametrize(
    "shape,channels",
    [((8, 8, 1), (4, 8, 8)), ((28, 28, 1), (4, 8)), ((32, 32, 3), (4, 4, 4, 4, 4)), ((16, 8, 1), (4,))],
)
def test_sizes(shape, channels):
    model = make(dataclasses.replace(SMALL, channels=channels), data_of(*shape, 256, num_classes=10))

    def run(key, batch):
        params, extra = model.init(key, batch, {})
        keys = rng.image_keys(key, jnp.arange(2))
        ctx = Context(jnp.int32(0), ema=params, extra=extra)
        return model.sample(params, ctx, keys, model.condition(batch)), [
            phase.loss(params, ctx, keys, batch) for phase in model.phases
        ]

    image, _ = jax.eval_shape(run, jax.random.key(0), make_batch(model, 2))
    assert image.shape == (2, *shape) and image.dtype == jnp.uint8


@pytest.mark.slow
def test_resumes_to_the_bit_in_the_middle_of_a_lazy_cycle(tmp_path, cache):
    """Two discriminator steps and a penalty in every third step; stopped after 4 of 7 steps, between two penalties."""
    experiment = import_config(ROOT / "configs/gan/dcgan.py").get_config("tiny")
    model = dataclasses.replace(LAZY, disc_steps=2, disc_norm="none", conditioning="none")
    train = dataclasses.replace(experiment.train, log_every=2, validate_every=0, checkpoint_every=100, batch_size=8)
    arrays = {}
    for run, stops in (("unbroken", (7,)), ("broken", (4, 7))):
        for steps in stops:
            options = dataclasses.replace(train, steps=steps)
            api.fit(dataclasses.replace(experiment, model=model, train=options), tmp_path / run)
        gen = api.load(tmp_path / run, ema=False)
        average = api.load(tmp_path / run)
        arrays[run] = jax.device_get((gen.params, gen.ctx.extra, average.params))
        assert checkpoints.newest_good(tmp_path / run / "checkpoints") == 7
    assert same(arrays["unbroken"], arrays["broken"])
    lines = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in arrays]
    assert lines[0] == lines[1] and b"loss_penalty" in lines[0]


UNLABELLED = data_of(32, 32, 3, 256)
MISTAKES = [
    ({"disc_steps": 0}, DATA, "disc_steps is 0: it must be above zero"),
    ({"disc_steps": -2}, DATA, "disc_steps is -2: it must be above zero"),
    ({"latent": 0}, DATA, "latent is 0: it must be above zero"),
    ({"channels": ()}, DATA, "channels is (): it must be above zero"),
    ({"channels": (8, 0)}, DATA, "channels is (8, 0): it must be above zero"),
    ({"loss": "wassertein"}, DATA, "loss is 'wassertein': it must be one of minimax, non_saturating"),
    ({"disc_norm": "layer"}, DATA, "disc_norm is 'layer': it must be one of batch, spectral, none"),
    ({"regulariser": "r2"}, DATA, "regulariser is 'r2': it must be one of none, clip"),
    ({"conditioning": "film"}, DATA, "conditioning is 'film': it must be one of none, projection"),
    ({"regulariser": "clip", "clip": 0.0}, DATA, "clip is 0.0: it must be above zero"),
    ({"regulariser": "clip", "clip": -0.1}, DATA, "clip is -0.1: it must be above zero"),
    ({"penalty_weight": 0.0}, DATA, "penalty_weight is 0.0: it must be above zero"),
    ({"penalty_every": 0}, DATA, "penalty_every is 0: it must be above zero"),
    ({"penalty_every": 16}, DATA, "penalty_every is 16: it must be 1, since regulariser 'none' adds no penalty"),
    ({"norm_momentum": 1.0}, DATA, "norm_momentum is 1.0: it must be at least 0 and below 1"),
    ({"dtype": "float16"}, DATA, "dtype is 'float16': it must be one of float32, bfloat16"),
    (
        {"channels": (8, 8, 8)},
        data_of(28, 28, 1, 256, num_classes=10),
        "images are 28x28: channels has 3 entries, each of which halves the size",
    ),
    ({"channels": (8, 8, 8, 8)}, DATA, "height and width must be divisible by 16"),
    ({"regulariser": "r1"}, DATA, "disc_norm is 'batch', which couples the gradients of images: r1 needs"),
    ({"regulariser": "gradient_penalty"}, DATA, "couples the gradients of images: gradient_penalty needs"),
    ({"loss": "wasserstein", "disc_norm": "none"}, DATA, "loss is 'wasserstein', for which the critic's"),
    ({}, UNLABELLED, "conditioning is 'projection', but the data has no labels"),
    ({"conditioning": "auxiliary"}, UNLABELLED, "conditioning is 'auxiliary', but the data has no labels"),
]


@pytest.mark.parametrize("changes,data,message", MISTAKES, ids=[m[2][:40] for m in MISTAKES])
def test_a_mistake_is_one_line(changes, data, message):
    with pytest.raises(UserError) as caught:
        make_model(dataclasses.replace(SMALL, **changes), data)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unconditional_model_takes_no_label():
    model, params, ctx, *_ = started(dataclasses.replace(SMALL, conditioning="none"))
    with pytest.raises(UserError, match="label is 3: dcgan was trained without it, it takes no conditions"):
        sample_images(model, params, ctx, jax.random.key(0), 2, cond={"label": 3})
    with pytest.raises(UserError, match="label is 10: it must be from 0 to 9"):
        sample_images(make(SMALL, DATA), params, ctx, jax.random.key(0), 2, cond={"label": 10})
    with pytest.raises(UserError, match="unknown option 'steps': sample of dcgan takes no options"):
        sample_images(model, params, ctx, jax.random.key(0), 2, steps=3)
