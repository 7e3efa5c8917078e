"""The sparse transformer over pixels: all images of a tiny size enumerated, causality, its cached sampler beside a
naive one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import SYSTEMS
from enumeration import all_images, enumerate_log_prob, pooled_chisquare
from naive_autoregressive import normal_params, sample_sequence_naively
from specs import data_of

from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.generate import check_images, resolve_options, sample_images
from jgen.core.model import ArraySpec, Context, DataSpec
from jgen.errors import NotSupported, UserError
from jgen.experiment import make_model
from jgen.models.autoregressive import image_transformer
from jgen.nn.distribution_augmentation import AUGMENTATIONS, transform
from jgen.samplers import autoregressive
from jgen.samplers.sequence import sample_sequence

CTX = Context(jnp.int32(0))
CLASSES, WORDS, LENGTH = 2, 4, 3
SIZES = {
    "binary 2x2": (2, 2, 1, 2),
    "3 levels 2x2": (2, 2, 1, 3),
    "RGB 1x2": (1, 2, 3, 2),
    "RGB 1x2, 3 levels": (1, 2, 3, 3),
    "binary 3x3": (3, 3, 1, 2),
}
SPARSE = {"strided": {"attention": "strided", "stride": 2}, "fixed": {"attention": "fixed", "stride": 2, "summary": 1}}
SMALL = {"features": 8, "layers": 2, "heads": 2, "hidden": 12, "key_features": 4}
TEXTS = {"first": [1, 2, 0], "second": [1, 3, 2]}


def spec(*size):
    data = data_of(*size, CLASSES)
    return DataSpec(data.image, {**data.fields, "text": ArraySpec((LENGTH,), "int32", WORDS)})


def make(size, **options):
    return make_model(image_transformer.Config(**{**SMALL, **options}), spec(*SIZES[size]))


def some_batch(model, n=1):
    draw = np.random.default_rng(5)
    batch = {"image": draw.integers(0, model.images.levels, (n, *model.images.shape)).astype(np.uint8)}
    batch["label"] = np.arange(n, dtype=np.int32) % CLASSES
    batch["text"] = draw.integers(0, WORDS, (n, LENGTH)).astype(np.int32)
    return batch


def make_params(model, gain=2.0):
    """Parameters far from their start, so that no probability is as any other."""
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), some_batch(model), {})
    return normal_params(shapes, gain=gain)


# Probabilities.


@pytest.mark.parametrize("size,options", [
    ("binary 2x2", {}),
    ("3 levels 2x2", SPARSE["strided"]),
    ("RGB 1x2", SPARSE["fixed"]),
    ("RGB 1x2, 3 levels", {"augmentation": "flip"}),
    ("3 levels 2x2", {"text": "text", "augmentation": "dihedral"}),
    ("RGB 1x2", {"text": "text", **SPARSE["strided"]}),
    ("RGB 1x2, 3 levels", {"text": "text", **SPARSE["fixed"]}),
])  # fmt: skip
def test_the_probabilities_of_all_images_sum_to_one(size, options):
    """For each class and text."""
    model = make(size, **options)
    params, by_condition = make_params(model), []
    for label in range(CLASSES):
        for text in TEXTS.values() if "text" in model.conditions else [None]:
            cond = {"label": label} | ({"text": text} if text else {})
            by_condition.append(enumerate_log_prob(model, params, cond))
            assert abs(np.exp(by_condition[-1]).sum() - 1) < 1e-5
            assert np.ptp(by_condition[-1]) > 1  # far from uniform
    for number, log_p in enumerate(by_condition):  # each condition matters
        assert all(np.abs(log_p - other).max() > 0.01 for other in by_condition[:number])


@pytest.mark.slow
def test_frequencies_of_samples_are_the_enumerated_probabilities():
    model = make("RGB 1x2", text="text", **SPARSE["strided"])
    params, n = make_params(model), 4000
    cond, other = {"label": 1, "text": TEXTS["second"]}, {"label": 1, "text": TEXTS["first"]}
    images = sample_images(model, params, CTX, jax.random.key(3), n, cond=cond, batch_size=n)
    assert pooled_chisquare(images, 2, enumerate_log_prob(model, params, cond)) > 1e-3
    assert pooled_chisquare(images, 2, enumerate_log_prob(model, params, other)) < 1e-6  # the test can fail


@pytest.mark.slow
def test_completion_draws_from_the_conditional_distribution():
    model = make("binary 3x3", attention="fixed", stride=3, summary=2)
    params, n = make_params(model), 3000
    given = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]], np.uint8).reshape(1, 3, 3, 1).repeat(n, 0)
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    model.check_mask(mask)
    keys, cond = rng.image_keys(jax.random.key(5), jnp.arange(n)), {"label": jnp.ones(n, jnp.int32)}
    masks = jnp.broadcast_to(mask, (n, 3, 3))
    drawn = np.asarray(jax.jit(model.inpaint)(params, CTX, keys, given, masks, cond))
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:, mask], given[:, mask])
    log_p = enumerate_log_prob(model, params, {"label": 1})
    possible = np.all(all_images(model.images)[:, mask] == given[:1, mask], axis=(1, 2))
    assert possible.sum() == 2**5
    assert pooled_chisquare(drawn, 2, np.where(possible, log_p, -np.inf)) > 1e-3


def test_the_loss_is_the_negative_log_probability_a_dimension():
    model = make("3 levels 2x2")
    params, batch = make_params(model), some_batch(model, 7)
    keys = rng.image_keys(jax.random.key(0), jnp.arange(7))
    log_p, (loss, (metrics, _)), scores = jax.jit(
        lambda p: (
            model.log_prob(p, CTX, keys, batch["image"], {"label": batch["label"]}),
            model.phases[0].loss(p, CTX, keys, batch),
            model.validate(p, CTX, keys, batch),
        )
    )(params)
    np.testing.assert_allclose(loss, -np.mean(log_p) / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_dim"], loss / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(scores["nll"], -log_p, rtol=1e-5)
    assert model.likelihood == "exact" and model.best == ("nll", "min")


# Augmentation.


@pytest.mark.slow
def test_transformations_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 99, (8, 4, 4, 3)).astype(np.int32)

    def all_of(augmentation):
        n = len(AUGMENTATIONS[augmentation])
        return np.asarray(transform(jnp.asarray(images[:1].repeat(n, 0)), jnp.arange(n), augmentation))

    x = images[0]
    np.testing.assert_array_equal(all_of("none"), [x])
    np.testing.assert_array_equal(all_of("flip"), [x, x[:, ::-1]])
    np.testing.assert_array_equal(all_of("transposition"), [x, x.swapaxes(0, 1)])
    np.testing.assert_array_equal(all_of("rotation"), [np.rot90(x, k) for k in range(4)])
    wanted = {np.rot90(y, k).tobytes() for y in (x, x[:, ::-1]) for k in range(4)}
    dihedral = all_of("dihedral")
    assert {y.tobytes() for y in dihedral} == wanted and len(wanted) == 8
    np.testing.assert_array_equal(dihedral[0], x)
    wide = jnp.asarray(images[:, :3])
    np.testing.assert_array_equal(transform(wide, jnp.ones(8, jnp.int32), "flip"), wide[:, :, ::-1])


@pytest.mark.slow
def test_the_loss_is_of_turned_images_given_their_turn_and_scores_are_of_the_identity():
    model = make("binary 2x2", augmentation="rotation")
    params, batch, n = make_params(model), some_batch(model, 6), 6
    config, data, cond = (
        image_transformer.Config(**SMALL, augmentation="rotation"),
        model.data,
        {"label": batch["label"]},
    )
    system = image_transformer.System(image_transformer.make_network(config, data), config, data, ("label",))
    keys = rng.image_keys(jax.random.key(4), jnp.arange(n))
    x = jnp.asarray(batch["image"])

    @jax.jit
    def run(params):
        each = [
            image_transformer.log_likelihood(
                system, params, transform(x, jnp.full(n, t), "rotation"), cond, None, jnp.full(n, t)
            )
            for t in range(4)
        ]
        return (
            jnp.stack(each),
            model.phases[0].loss(params, CTX, keys, batch)[0],
            model.log_prob(params, CTX, keys, x, cond),
        )

    each, loss, log_p = run(params)
    drawn = rng.randint(rng.split(keys, 2)[0], 0, 4)
    assert len(np.unique(drawn)) > 1
    np.testing.assert_allclose(loss, -np.mean(each[drawn, np.arange(n)]) / 4, rtol=1e-5)
    np.testing.assert_allclose(log_p, each[0], rtol=1e-5)
    assert np.abs(each[1:] - each[:1]).max() > 0.01


# What a sub-pixel depends on.


@pytest.mark.parametrize("options", [{}, *SPARSE.values()], ids=["dense", *SPARSE])
def test_a_sub_pixel_depends_on_all_before_it_and_on_nothing_else(options):
    config, data = image_transformer.Config(**{**SMALL, **options}), spec(2, 3, 3, 3)
    network, n = image_transformer.make_network(config, data), data.image.size
    params, cond = make_params(make_model(config, data))["transformer"], {"label": np.zeros(1, np.int32)}

    def logits(values):
        return network.apply({"params": params}, values[None], cond, method="predict")[0]

    values = np.random.default_rng(0).standard_normal((n, config.features)).astype(np.float32)
    depends = np.any(np.asarray(jax.jit(jax.jacobian(logits))(values)) != 0, axis=(1, 3))
    np.testing.assert_array_equal(depends, np.tri(n, k=-1, dtype=bool))
    # Positions are rows, then columns, then channels: the sub-pixels that change when one value of an image does.
    x = np.zeros((1, 2, 3, 3), np.int32)
    changed = x.copy()
    changed[0, 0, 2, 1] = 2
    call = jax.jit(lambda x: network.apply({"params": params}, x, cond))
    differs = np.any(np.asarray(call(x) != call(changed)), axis=-1).reshape(-1)
    np.testing.assert_array_equal(differs, np.arange(n) > 2 * 3 + 1)


# The cached sampler beside one that evaluates the network over the whole image for every sub-pixel.

# options of the model, (H, W, C), levels, (temperature, top_k, top_p), batch
CASES = {
    "dense": ({}, (4, 3, 1), 5, (1.0, 0, 1.0), 4),
    "dense, text, more than a chunk": ({"text": "text", "layers": 3}, (3, 3, 1), 4, (0.7, 0, 1.0), 19),
    "strided, colours": ({"attention": "strided", "stride": 6, "layers": 4}, (3, 4, 3), 256, (1.0, 20, 1.0), 3),
    "strided, text": ({"attention": "strided", "stride": 4, "text": "text"}, (4, 4, 1), 17, (1.5, 0, 0.9), 3),
    "fixed": (
        {"attention": "fixed", "stride": 5, "summary": 2, "augmentation": "flip"},
        (5, 4, 1),
        3,
        (1.0, 2, 0.7),
        4,
    ),
    "fixed, text": ({"attention": "fixed", "stride": 6, "summary": 1, "text": "text"}, (2, 3, 3), 4, (1.0, 0, 1.0), 2),
    "one position": ({}, (1, 1, 1), 4, (1.0, 0, 1.0), 3),
}


def setting(name):
    """(network, parameters, keys, conditions, shape, levels, truncation)."""
    options, shape, levels, truncation, batch = CASES[name]
    config, data = image_transformer.Config(**{**SMALL, **options}), spec(*shape, levels)
    model = make_model(config, data)
    fields = some_batch(model, batch)
    cond = {field: jnp.asarray(fields[field]) for field in model.conditions}
    keys = rng.image_keys(jax.random.key(1), jnp.arange(batch))
    network = image_transformer.make_network(config, data)
    return network, make_params(model)["transformer"], keys, cond, shape, levels, truncation


def both(name, images=None, mask=None):
    network, params, keys, cond, shape, levels, truncation = setting(name)
    out = []
    for sampler in (sample_sequence, sample_sequence_naively):
        call = jax.jit(lambda p, s=sampler: s(network, p, keys, cond, shape, levels, *truncation, images, mask))
        out.append(np.asarray(call(params)))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_cached_sampler_draws_what_the_naive_one_draws(name):
    cached, naive = both(name)
    np.testing.assert_array_equal(cached, naive)
    assert cached.min() >= 0 and cached.max() < CASES[name][2] and len(np.unique(cached)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["strided, colours", "fixed, text"])
def test_completion_keeps_what_is_given_and_draws_the_rest_as_the_naive_sampler(name):
    _, (height, width, channels), levels, _, batch = CASES[name]
    images = np.random.default_rng(3).integers(0, levels, (batch, height, width, channels)).astype(np.uint8)
    count = np.arange(batch) * height * width // batch  # another prefix for each image, the first keeps nothing
    mask = np.arange(height * width).reshape(1, height, width) < count.reshape(-1, 1, 1)
    cached, naive = both(name, jnp.asarray(images), jnp.asarray(mask))
    np.testing.assert_array_equal(cached, naive)
    np.testing.assert_array_equal(cached[mask], images[mask])
    assert np.any(cached[~mask] != images[~mask])


@pytest.mark.slow
def test_chunks_of_the_batch_do_not_change_an_image(monkeypatch):
    network, params, keys, cond, shape, levels, truncation = setting("dense, text, more than a chunk")

    def draw(n):
        some = {name: value[:n] for name, value in cond.items()}
        return np.asarray(
            jax.jit(lambda p: sample_sequence(network, p, keys[:n], some, shape, levels, *truncation))(params)
        )

    whole = draw(19)
    monkeypatch.setattr(autoregressive, "CHUNK", 19)
    np.testing.assert_array_equal(draw(19), whole)
    np.testing.assert_array_equal(draw(5), whole[:5])


@pytest.mark.parametrize("options", [{}, {"attention": "strided", "stride": 16}], ids=["dense", "strided"])
def test_a_position_costs_as_many_operations_as_its_part_of_the_network(options):
    config, data, cond = (
        image_transformer.Config(**{**SMALL, **options}),
        spec(16, 16, 1, 4),
        {"label": jnp.zeros(1, int)},
    )
    network, model = image_transformer.make_network(config, data), make_model(config, data)
    params = {"params": make_params(model)["transformer"]}

    def operations(function, *args):
        return jax.jit(function).lower(*args).cost_analysis()["flops"]

    def step(caches, before):
        return network.apply(params, caches, jnp.int32(9), before, cond, method="step")

    caches = network.apply(params, 1, cond, method="start")
    whole = operations(lambda x: network.apply(params, x, cond), jnp.zeros((1, 16, 16, 1), jnp.int32))
    assert operations(step, caches, jnp.zeros(1, jnp.int32)) < 2 * whole / 256


@pytest.mark.slow
def test_greedy_sampling_draws_one_image_whatever_the_key():
    model = make("3 levels 2x2")
    params = make_params(model)
    images = sample_images(model, params, CTX, jax.random.key(0), 9, cond={"label": 0}, top_k=1)
    assert np.all(images == images[:1])
    same = sample_images(model, params, CTX, jax.random.key(1), 9, cond={"label": 0}, top_p=1e-6)
    np.testing.assert_array_equal(same, images)
    assert np.ptp(sample_images(model, params, CTX, jax.random.key(1), 9, cond={"label": 0}), axis=0).max() > 0


# Sizes and bad input.


def test_the_cifar10_variant_has_the_papers_size():
    """59 million parameters (Child et al. 2019, section 7.1)."""
    config = import_config(SYSTEMS["image_transformer"]).get_config("cifar10").model
    model = make_model(config, spec(32, 32, 3, 256))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), some_batch(model), {})
    assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e6) == 59


@pytest.mark.parametrize("options,words", [
    ({"features": 0}, "features is 0: it must be above zero"),
    ({"heads": 3}, "features is 8: it must be divisible by the 3 heads"),
    ({"layers": 3, **SPARSE["strided"]}, "layers is 3: it must be divisible by 2"),
    ({"attention": "strided", "stride": 4}, "stride is 4: it must divide the 6 positions of an image"),
    ({"attention": "fixed", "stride": 3, "summary": 4}, "summary is 4: it must be from 1 to the stride, 3"),
    ({"attention": "none"}, "attention is 'none'"),
    ({"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
    ({"dtype": "float16"}, "dtype is 'float16'"),
    ({"augmentation": "rotation"}, "augmentation is 'rotation': it turns square images, and these are 1 x 2"),
    ({"text": "caption"}, "text is 'caption': it must be a field of tokens; the data has label, text"),
    ({"text": "label"}, "text is 'label': it must be a field of tokens"),
    ({"sampling": image_transformer.Sampling(temperature=0.0)}, "temperature is 0.0"),
    ({"sampling": image_transformer.Sampling(top_p=0.0)}, "top_p is 0.0: it must be above 0 and at most 1: set --"),
    ({"sampling": image_transformer.Sampling(top_k=3)}, "top_k is 3: it must be from 1 to 2, the levels"),
])  # fmt: skip
def test_configurations_that_no_model_can_be_made_of(options, words):
    with pytest.raises(UserError) as caught:
        make("RGB 1x2", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_model_cannot_be_asked_for():
    config = image_transformer.Config(**SMALL)
    with pytest.raises(UserError, match="class_conditional is True, but the data has no labels"):
        image_transformer.make(config, data_of(4, 4, 1, 2))
    model = image_transformer.make(replace(config, class_conditional=False), data_of(4, 4, 1, 2))
    with pytest.raises(UserError, match="top_p is 1.5: it must be above 0 and at most 1"):
        resolve_options(model, "sample", {"top_p": 1.5})
    with pytest.raises(UserError, match="images have the value 2: they must be from 0 to 1"):
        check_images(model, np.full((1, 4, 4, 1), 2, np.uint8))
    with pytest.raises(NotSupported, match="mask keeps the pixel at row 3, column 0"):
        model.check_mask(np.arange(16).reshape(4, 4) > 11)
