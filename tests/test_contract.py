"""The contract, over every configuration's `tiny` variant and four toy models unlike one another."""

import contextlib
import functools
import json
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import BATCH, CASES, ROOT, SGD, SYSTEMS, make_batch, make_case, make_run, step_batch

from jgen.cli import load_config, set_up_process
from jgen.core import parallel
from jgen.core.generate import sample_images
from jgen.core.keys import image_keys
from jgen.core.model import Context, ImageSpec
from jgen.data.config import Config as Data
from jgen.data.transforms import make_transform
from jgen.experiment import make_model
from jgen.train.config import Optimiser
from jgen.train.step import averaged

# A game has no loss that must fall, and BatchNorm normalises what is computed at once: it is synchronised over devices,
# not over accumulation steps.
WITH_ONE_LOSS = WITHOUT_BATCH_NORM = [name for name in CASES if len(make_case(name).model.phases) == 1]
# The toys on every number of devices and parts; the systems, slow to compile, on two of each and marked slow.
EVERYWHERE = [name for name in CASES if name.startswith("toy:")]
OTHERS = [name for name in CASES if name not in EVERYWHERE]
FOUR = ["ddpm", "vq_vae"]
GROUPS = [
    pytest.param(EVERYWHERE, id="toys"),
    pytest.param(OTHERS[::2], id="others", marks=pytest.mark.slow),
    pytest.param(OTHERS[1::2], id="more others", marks=pytest.mark.slow),
    pytest.param(FOUR, id="four devices", marks=pytest.mark.slow),
]
ADAM = Optimiser(learning_rate=3e-3)


def flat(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return np.concatenate(leaves or [np.zeros(0)])


def test_systems_say_what_their_networks_may_be_and_whether_they_have_a_density():
    """As the comparative review's table has it: free-form Jacobian, exact density (arXiv 2103.04922, table 1)."""
    declared = {}
    for name in SYSTEMS:
        model = make_case(name).model
        declared[name] = model.free_form_jacobian, model.likelihood == "exact" or model.log_density is not None
    autoregressive = flow = (False, True)
    latent = gan = diffusion = (True, False)
    wanted = {"pixelcnn": autoregressive, "gated_pixelcnn": autoregressive, "realnvp": flow, "glow": flow}
    wanted |= {"vae": latent, "vq_vae": latent, "vq_prior": latent, "dcgan": gan, "ddpm": diffusion}
    assert declared == wanted


@pytest.mark.parametrize("name", CASES)
def test_steps_reach_every_trained_leaf_compile_once_and_repeat(name):
    case = make_case(name)
    trained = {role for phase in case.model.phases for role in phase.trains}

    def steps(count, then=contextlib.nullcontext):
        """The states after the first step and after all, the first compiled before `then` begins."""
        state, step = make_run(case, optimiser=ADAM)
        states = [jax.device_get(state)]
        state, metrics = step(state, case.frozen, step_batch(case.model))
        found = [metrics]
        states.append(jax.device_get(state))
        with then():
            for seed in range(1, count):
                state, metrics = step(state, case.frozen, step_batch(case.model, seed))
                found.append(metrics)
            jax.block_until_ready(state)
        return [*states, jax.device_get(state)], jax.device_get(found)

    said = []

    @contextlib.contextmanager
    def listening():
        with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(logging.Logger, "handle", lambda self, record: said.append(record.getMessage()))
            yield

    (start, first, last), metrics = steps(8, listening)
    assert not [line for line in said if "Compiling" in line], said
    assert int(last.step) == 8 and all(np.isfinite(v) for found in metrics for v in found.values())
    assert sum(int(found["skipped"]) for found in metrics) == 0
    assert jax.tree.structure(start.params) == jax.tree.structure(last.params) and set(start.params) == trained
    # Adam moves just what a gradient has reached. Several draws: a class or a mode may be missing in one.
    for path, before in jax.tree_util.tree_leaves_with_path(start.params):
        after = functools.reduce(lambda tree, key: tree[key.key], path, last.params)
        assert np.any(before != after), f"{jax.tree_util.keystr(path)} gets no gradient"
    for role in start.params:
        assert np.any(flat(start.params[role]) != flat(first.params[role])), role
    np.testing.assert_array_equal(flat(steps(8)[0][-1].params), flat(last.params))


@pytest.mark.parametrize("name", CASES)
def test_every_function_gives_the_shapes_and_types_of_the_contract(name):
    """Traced, not compiled."""
    case, n = make_case(name, axis_name=None), 3
    model, batch = case.model, make_batch(case.model, n)
    keys, images = image_keys(jax.random.key(1), jnp.arange(n)), batch["image"]
    label = batch["label"] if model.conditional else None
    params, extra = jax.eval_shape(model.init, jax.random.key(0), batch)
    ctx = Context(jnp.int32(0), params, extra, case.frozen)

    def traced(function, *arguments):
        return jax.eval_shape(lambda params, ctx: function(params, ctx, keys, *arguments), params, ctx)

    chex.assert_type(jax.tree.leaves(params), jnp.float32)
    for phase in model.phases:
        loss, (metrics, new_extra) = traced(phase.loss, batch)
        chex.assert_shape([loss, *metrics.values()], ())
        chex.assert_type(loss, jnp.float32)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_extra, {role: extra[role] for role in new_extra})

    mask = jnp.zeros((n, *model.images.shape[:2]), bool)
    decoded = lambda *all: model.decode(*all[:3], model.encode(*all), all[4])
    of_images = [(model.sample, (label,)), (model.encode and model.decode and decoded, (images, label))]
    of_images += [(model.inpaint, (images, mask, label))]
    of_numbers = [(model.log_prob, (images, label)), (model.log_density, (np.float32(images) + 0.5, label))]
    of_numbers += [(model.validate, (batch,))]
    for promised, shape, dtype in ((of_images, (n, *model.images.shape), jnp.uint8), (of_numbers, (n,), jnp.float32)):
        for function, arguments in promised:
            if function is not None:
                found = jax.tree.leaves(traced(function, *arguments))
                assert found
                chex.assert_shape(found, shape)
                chex.assert_type(found, dtype)
    assert (model.log_prob is None) == (model.likelihood == "none")
    if model.encode is not None:
        chex.assert_tree_shape_prefix(traced(model.encode, images, label), (n,))


@pytest.mark.parametrize("name", WITH_ONE_LOSS)
def test_overfits_one_batch(name):
    case = make_case(name)
    state, step = make_run(case, optimiser=ADAM)
    batch = step_batch(case.model)
    losses = []
    for _ in range(150):
        state, metrics = step(state, case.frozen, batch)
        losses.append(metrics["loss"])
    losses = np.asarray(jax.device_get(losses))
    first, last = losses[:10].mean(), losses[-30:].mean()
    assert last < first - 0.15 * abs(first), (first, last)


def some_images(name, count, optimiser=ADAM, **options):
    """Samples, int32, of a model before its first step."""
    case, model = make_case(name), make_case(name, axis_name=None).model
    state, _ = make_run(case, optimiser=optimiser)  # one that the other tests of this system make too
    # A GAN's first weights are so small that all its images are one grey.
    params = jax.tree.map(lambda x: 10 * x, state.params) if name == "dcgan" else state.params
    ctx = parallel.replicate(Context(jnp.int32(0), params, state.extra, case.frozen))
    return sample_images(model, params, ctx, jax.random.key(7), count, **options).astype(np.int32)


@pytest.mark.parametrize("name", CASES)
def test_image_i_does_not_depend_on_the_batch_size(name):
    model, n = make_case(name, axis_name=None).model, 64
    draw = functools.partial(some_images, name)
    reference = draw(n, batch_size=64)
    chex.assert_shape(reference, (n, *model.images.shape))
    assert reference.max() < model.images.levels and len(np.unique(reference.reshape(n, -1), axis=0)) > 1
    for size, count in ((7, 14), (1, 2)):
        assert np.abs(draw(count, batch_size=size) - reference[:count]).max() <= 1  # one level: rounding
    assert np.abs(draw(5, start=40, batch_size=7) - reference[40:45]).max() <= 1


def after_two_steps(cases):
    """{name: array} of what runs of (name, parts) come to, on the devices of this process."""
    out = {}
    unrolls = parallel.unrolls_loops()
    # Images are turned at random in the step: each must be the same on any number of devices.
    turned = make_transform(Data(flip=True), 256, train=True)
    for name, parts in cases:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "unrolls_loops", lambda parts=parts: unrolls and parts < 4)  # else as on GPU
            case = make_case(name)
            state, step = make_run(case, accumulation=parts, transform=turned)
            if name == "vq_vae":  # codes that are dead after a step, and are moved in the next
                book = state.extra["codebook"]
                book = book | {part: book[part].at[8:].multiply(0.05) for part in ("count", "sum")}
                state = parallel.replicate(state._replace(extra={"codebook": book}))
            for seed in range(2):
                state, metrics = step(state, case.frozen, step_batch(case.model, seed))
            assert name != "vq_vae" or metrics["revived"] >= 1
        for kind in ("params", "ema", "extra"):
            out[f"{name}/{kind}/{parts}"] = flat(getattr(state, kind))
        if not any(key.startswith(f"{name}/images/") for key in out):
            out[f"{name}/images/{parts}"] = some_images(name, 5, SGD, batch_size=4)
    return out


ON_DEVICES = """
import json, sys
import numpy as np
sys.path.insert(0, "tests")
from test_contract import after_two_steps
from jgen.cli import set_up_process

set_up_process()
np.savez(sys.argv[1], **after_two_steps(json.loads(sys.argv[2])))
"""


@pytest.mark.long
@pytest.mark.parametrize("names", GROUPS)
def test_devices_and_accumulation_change_only_the_order_of_sums(python, tmp_path, names):
    runs = ((1, (1, 2, 4)), (2, (1,)), (4, (1,))) if names is EVERYWHERE else ((1, (1,)), (2, (1, 2)))
    runs = ((1, (1, 4)), (4, (1,))) if names is FOUR else runs
    found = {}
    for devices, parts in runs:
        cases = [(name, n) for name in names for n in parts if n == 1 or name in WITHOUT_BATCH_NORM]
        if names is not EVERYWHERE and devices == 2:  # one of them shows both
            cases = [(name, n) for name, n in cases if n == 2 or name not in WITHOUT_BATCH_NORM]
        if devices == parallel.device_count():
            found[devices] = after_two_steps(cases)
            continue
        python("-c", ON_DEVICES, tmp_path / "arrays.npz", json.dumps(cases), devices=devices, timeout=600)
        found[devices] = dict(np.load(tmp_path / "arrays.npz"))
    for devices, arrays in found.items():
        assert arrays
        for key, array in arrays.items():
            reference = found[1][key[:-1] + "1"]
            message = f"{key} on {devices} devices"
            if "/images/" in key:
                assert np.abs(array - reference).max() <= 1, message  # one level: rounding
                assert np.any(array[0] != array[4]), message
            else:
                np.testing.assert_allclose(array, reference, rtol=2e-5, atol=2e-6, err_msg=message)


def test_a_step_binarises_anew_and_the_same_when_it_is_repeated():
    case = make_case("toy:vae")
    phase, of_place = case.model.phases[0], jnp.arange(64.0).reshape(8, 8, 1)

    def loss(params, ctx, keys, batch):
        value, (metrics, extra) = phase.loss(params, ctx, keys, batch)
        return value, ({**metrics, "seen": jnp.mean(batch["image"] * of_place[None])}, extra)

    case = case._replace(model=case.model._replace(phases=(phase._replace(loss=loss),)))
    transform = make_transform(Data(binarise="dynamic"), 2, train=True)
    found = []
    for _ in range(2):
        state, step = make_run(case, transform=transform)
        batch, seen = step_batch(case.model), []
        for _ in range(3):
            state, metrics = step(state, {}, batch)
            seen.append(float(metrics["seen"]))
        found.append(seen)
    assert found[0] == found[1] and len(set(found[0])) == 3 and 0 < min(found[0]) and max(found[0]) < 31.5


@pytest.mark.parametrize("bad", ["loss", "gradient", "extra"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
    case = make_case("toy:vae")
    phase = case.model.phases[0]

    def poisoned(params, ctx, keys, batch):
        loss, rest = phase.loss(params, ctx, keys, batch)
        if bad == "loss":
            return loss + jnp.where(ctx.step == 1, jnp.nan, 0.0), rest
        if bad == "extra":
            return loss, (rest[0], {"statistics": jnp.where(ctx.step == 1, jnp.inf, 1.0)})
        # At step 1 the root of zero: a finite value with an infinite slope.
        leaf = jax.tree.leaves(params["enc"])[0]
        zero = jnp.sum(leaf - jax.lax.stop_gradient(leaf))
        return loss + jnp.sqrt(zero + jnp.where(ctx.step == 1, 0.0, 1.0)), rest

    model = case.model._replace(phases=(phase._replace(loss=poisoned),))
    if bad == "extra":
        model = model._replace(init=lambda *args: (case.model.init(*args)[0], {"statistics": jnp.float32(0)}))
    state, step = make_run(case._replace(model=model), optimiser=Optimiser())
    batch = step_batch(case.model)
    state, _ = step(state, {}, batch)
    good = jax.device_get((state.params, state.ema, state.opt, state.extra))
    state, metrics = step(state, {}, batch)
    chex.assert_trees_all_equal(good, jax.device_get((state.params, state.ema, state.opt, state.extra)))
    assert int(state.step) == 2 and int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == 1
    state, metrics = step(state, {}, batch)
    assert int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == 0
    assert np.any(flat(state.params) != flat(good[0]))


def test_repeats_take_batches_of_their_own_and_lazy_phases_rest():
    """A phase with repeats=2, every=2 beside gradient descent by hand: with the batch and the keys of every update."""
    import toys

    case = make_case("toy:gan")._replace(model=toys.gan(parallel.AXIS, repeats=2, every=2))
    plain = toys.gan(None, repeats=2, every=2)
    state, step = make_run(case)
    params, extra = jax.device_get((state.params, state.extra))
    run_key = jax.random.wrap_key_data(np.array(jax.random.key_data(state.key)))  # the state's is donated
    grads = [jax.jit(jax.grad(phase.loss, has_aux=True)) for phase in plain.phases]

    for number in range(3):
        batch = step_batch(case.model, number)
        state, _ = step(state, {}, batch)
        updates = [(0, 0), (0, 1), (1, 0)] if number % 2 == 0 else [(1, 0)]  # (phase, repeat)
        for phase, repeat in updates:
            part = {name: array[repeat * BATCH :][:BATCH] for name, array in batch.items()}
            at = functools.reduce(jax.random.fold_in, (number, phase, repeat), run_key)
            keys = jnp.stack([jax.random.fold_in(at, i) for i in range(BATCH)])
            gradients, (_, new) = grads[phase](params, Context(jnp.int32(number), {}, extra, {}), keys, part)
            for role in plain.phases[phase].trains:
                descend = lambda p, g: p - SGD.learning_rate * g
                params = {**params, role: jax.tree.map(descend, params[role], gradients[role])}
            extra = {**extra, **jax.device_get(new)}
        for role in params:
            np.testing.assert_allclose(flat(state.params[role]), flat(params[role]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(flat(state.extra), flat(extra), rtol=1e-5, atol=1e-6)


def test_the_cifar10_unet_has_the_papers_size():
    """35.7 million parameters (Ho et al. 2020, appendix B)."""
    experiment, _ = load_config("configs/diffusion/ddpm.py:cifar10", ROOT)
    model = make_model(experiment.model, ImageSpec(32, 32, 3, 10, 256), None, None)
    batch = {
        "image": np.zeros((1, 32, 32, 3), np.uint8),
        "label": np.zeros(1, np.int32),
        "index": np.zeros(1, np.int32),
    }
    params, _ = jax.eval_shape(model.init, jax.random.key(0), batch)
    assert sum(x.size for x in jax.tree.leaves(params)) == 35_746_307


def test_the_average_follows_its_formula():
    case = make_case("toy:vae")
    for warmup in (False, True):
        state, step = make_run(case, ema_decay=0.3, ema_warmup=warmup)
        expected = flat(state.ema)
        for seed in range(6):
            state, _ = step(state, {}, step_batch(case.model, seed))
            decay = min(0.3, (1 + seed) / (10 + seed)) if warmup else 0.3  # the cap holds from the fourth step on
            expected = decay * expected + (1 - decay) * flat(state.params)
        np.testing.assert_allclose(flat(state.ema), expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal_shapes(averaged(state), state.params)
    np.testing.assert_array_equal(flat(averaged(state)), flat(state.ema))
    assert np.any(flat(state.ema) != flat(state.params))


def test_a_loss_reads_the_average_as_a_tree():
    """The metric below is the squared distance of parameters and average, each leaf from its own."""
    case = make_case("toy:vae")
    phase = case.model.phases[0]

    def loss(params, ctx, keys, batch):
        value, (metrics, extra) = phase.loss(params, ctx, keys, batch)
        squares = jax.tree.map(lambda p, a: jnp.sum((p - a) ** 2), params, ctx.ema)
        return value, ({**metrics, "apart": sum(jax.tree.leaves(squares))}, extra)

    state, step = make_run(case._replace(model=case.model._replace(phases=(phase._replace(loss=loss),))))
    for seed in range(3):
        wanted = np.sum((flat(state.params) - flat(state.ema)) ** 2)
        state, metrics = step(state, {}, step_batch(case.model, seed))
        np.testing.assert_allclose(metrics["apart"], wanted, rtol=1e-4, atol=1e-12)
    assert wanted > 0


def test_frozen_parameters_are_read_and_stay_out_of_the_state():
    case = make_case("toy:second_stage")
    state, step = make_run(case)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, state.ema)]
    assert set(state.params) == set(state.ema) == set(state.opt) == {"prior"} and sizes[0] == sizes[1]
    _, metrics = step(state, parallel.replicate(case.frozen), step_batch(case.model))
    state, _ = make_run(case)
    _, other = step(state, jax.tree.map(lambda x: x + 0.5, case.frozen), step_batch(case.model))
    assert float(metrics["loss"]) != pytest.approx(float(other["loss"]), rel=1e-3)


def test_a_second_start_takes_every_program_from_the_cache():
    import toys

    seen = []
    listen = lambda event, **_: seen.append(event)

    def start():
        """A step of a model made anew, of which no program is known in memory."""
        seen.clear()
        state, step = make_run(make_case("toy:vae")._replace(model=toys.vae(parallel.AXIS)))
        step(state, {}, step_batch(make_case("toy:vae").model))
        return [event.rpartition("/")[2] for event in seen if "compilation_cache" in event]

    of_tests = jax.config.jax_persistent_cache_min_compile_time_secs
    set_up_process()  # as users do, not as the other tests
    jax.monitoring.register_event_listener(listen)
    try:
        start()
        second = start()
    finally:
        jax.monitoring.unregister_event_listener(listen)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", of_tests)
    # The start and the step: what is asked of the cache is there.
    assert second.count("cache_hits") == second.count("compile_requests_use_cache") >= 2


def test_programs_run_under_a_callers_jit(monkeypatch):
    """With the options of compilation that users get, which the quick compilation of tests otherwise replaces."""
    options = {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(parallel, "compiler_options", lambda: options)
    double = parallel.pmap(lambda x: 2 * x, split=(0,), split_out=0)
    x = np.ones((parallel.device_count(), 3), np.float32)
    np.testing.assert_array_equal(double(x), 2 * x)
    np.testing.assert_array_equal(jax.jit(lambda x: double(x) + 1)(x), 2 * x + 1)
    state, step = make_run(make_case("toy:vae"))
    batch = step_batch(make_case("toy:vae").model)
    shapes = jax.eval_shape(lambda s, b: step(s, {}, b, 0)[0].params, state, batch)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, state.params)
