"""The contract, feature by feature, over toy models of which each has one."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from contract_cases import BATCH, SGD, TOYS, Case, make_case, make_run, step_batch
from contract_checks import (
    after_two_steps,
    check_batch_independence,
    check_signatures,
    check_training,
    compare_runs,
    compilations,
    flat,
    some_images,
    train,
)

from jgen.core import keys as rng
from jgen.core import parallel
from jgen.core.generate import batch_of, compiled, prepared, require_capability
from jgen.core.model import Context, every
from jgen.data.config import Config as Data
from jgen.data.transforms import make_transform
from jgen.errors import NotSupported, UserError
from jgen.train.config import Config, Optimiser
from jgen.train.optimisers import average_decay
from jgen.train.step import averaged, gather_state

# BatchNorm normalises what is computed at once: it is synchronised over devices, not over accumulation steps.
WITHOUT_BATCH_NORM = [name for name in TOYS if "gan" not in name and name != "toy:standing"]
SAMPLED = [name for name in TOYS if make_case(name).model.sample is not None]


@pytest.mark.parametrize("name", TOYS)
def test_every_function_gives_the_shapes_and_types_of_the_contract(name):
    check_signatures(make_case(name))


@pytest.mark.parametrize("name", TOYS)
def test_steps_reach_every_trained_leaf_and_repeat_to_the_bit(name):
    last = check_training(make_case(name), 8)
    again = train(make_case(name), 8)[0][-1]
    np.testing.assert_array_equal(flat(last.params), flat(again.params))
    np.testing.assert_array_equal(flat(last.extra), flat(again.extra))


@pytest.mark.parametrize("name", ["toy:vae", "toy:energy", "toy:guided"])
def test_a_step_compiles_once(name):
    case = make_case(name)
    state, step = make_run(case)
    state, _ = step(state, case.frozen, step_batch(case.model))
    batches = [step_batch(case.model, seed) for seed in range(1, 5)]
    with compilations() as messages:
        for batch in batches:
            state, metrics = step(state, case.frozen, batch)
        jax.block_until_ready(metrics)
    assert not [line for line in messages if "Compiling" in line], messages


def test_phases_that_come_and_go_compile_a_program_each_set():
    case = make_case("toy:growing")
    state, step = make_run(case)
    moved = []
    with compilations() as messages:
        for seed in range(6):
            before = jax.device_get(state.params)
            state, metrics = step(state, {}, step_batch(case.model, seed))
            differ = {role: np.any(flat(state.params[role]) != flat(before[role])) for role in ("small", "large")}
            moved.append([role for role, moves in differ.items() if moves])
            assert {role for role in ("small", "large") if f"loss_{role}" in metrics} == set(moved[-1])
    assert moved == [["small"]] * 2 + [["small", "large"]] * 2 + [["large"]] * 2
    programs = [line for line in messages if "Compiling" in line and "local_step" in line]
    assert len(programs) <= 3, programs
    # Where the number of the step is not given, it is read from the state.
    state, step = make_run(case)
    assert "loss_large" not in step(state, {}, step_batch(case.model))[1]


@pytest.mark.parametrize("name", SAMPLED)
def test_image_i_does_not_depend_on_the_batch_size(name):
    check_batch_independence(name)


ON_DEVICES = """
import json, sys
import numpy as np
sys.path.insert(0, "tests")
from contract_checks import after_two_steps
from jgen.cli import set_up_process

set_up_process()
np.savez(sys.argv[1], **after_two_steps(json.loads(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.long
def test_devices_and_accumulation_change_only_the_order_of_sums(python, tmp_path):
    reference = {}
    for devices, parts in ((1, (1, 4)), (2, (2,)), (4, (1,))):
        cases = [(name, n) for name in TOYS for n in parts if n == 1 or name in WITHOUT_BATCH_NORM]
        if devices == parallel.device_count():
            arrays = reference = after_two_steps(cases)
        else:
            python("-c", ON_DEVICES, tmp_path / "arrays.npz", json.dumps(cases), devices=devices, timeout=600)
            arrays = dict(np.load(tmp_path / "arrays.npz"))
        compare_runs(reference, arrays, f"on {devices} devices")


PROCESS = """
import json, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]))
import numpy as np
sys.path.insert(0, "tests")
from contract_checks import after_two_steps
arrays = after_two_steps(json.loads(sys.argv[2]))
if jax.process_index() == 0:
    np.savez(sys.argv[1], **arrays)
"""


@pytest.mark.long
def test_two_processes_of_two_devices_equal_one(python, start_python, tmp_path):
    cases = [("toy:vae", 1), ("toy:gan", 1), ("toy:energy", 2), ("toy:chain", 1), ("toy:flow_map", 1)]
    address = f"127.0.0.1:{free_port()}"
    words = ["-c", PROCESS, tmp_path / "arrays.npz", json.dumps(cases), address]
    processes = [start_python(*words, number, devices=2) for number in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    reference = after_two_steps([(name, 1) for name, _ in cases])
    compare_runs(reference, dict(np.load(tmp_path / "arrays.npz")), "in two processes")


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_integers_that_are_no_examples_own_are_refused():
    case = make_case("toy:energy")
    model = case.model._replace(by_example=())
    state, step = make_run(case._replace(model=model))
    with pytest.raises(UserError, match=r"extra\['buffer'\]\['moves'\] is int32, .*: declare the role by_example"):
        step(state, {}, step_batch(model))


@pytest.mark.slow
def test_what_belongs_to_an_example_stays_with_it():
    """Every step moves one slot of every example, whichever device and part has it."""
    case = make_case("toy:energy")
    for parts in (1, 4):
        state, step = make_run(case, accumulation=parts)
        start = np.array(gather_state(case.model, state).extra["buffer"]["x"])
        for seed in range(3):
            state, _ = step(state, {}, step_batch(case.model, seed))
        buffer = gather_state(case.model, state).extra["buffer"]
        assert buffer["x"].shape == (BATCH, toys.SLOTS, 64)
        np.testing.assert_array_equal(buffer["moves"].sum(axis=1), 3)
        untouched = buffer["moves"] == 0
        np.testing.assert_array_equal(buffer["x"][untouched], start[untouched])
        assert np.all(np.any(buffer["x"] != start, axis=2)[~untouched])


def test_a_fit_without_gradients_has_the_moments_of_its_batches():
    case = make_case("toy:fitted")
    state, step = make_run(case)
    images = []
    for seed in range(4):
        batch = step_batch(case.model, seed)
        images.append(batch["image"])
        state, metrics = step(state, {}, batch)
    x = np.concatenate(images).reshape(-1, 64) / 127.5 - 1
    moments = state.extra["moments"]
    np.testing.assert_allclose(moments["mean"], x.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments["square"], (x**2).mean(axis=0), rtol=1e-4, atol=1e-6)
    assert "grad_norm" not in metrics and state.params == {} and state.opt == {}


def test_the_shared_key_is_one_for_all_examples_and_another_each_step():
    """The times of a batch are evenly spread: their smallest is below 1 / B, their mean at most that from 1 / 2."""
    case = Case(toys.flow_map(tell_first=True), {})
    state, step = make_run(case)
    first = []
    for seed in range(5):
        state, metrics = step(state, {}, step_batch(case.model, seed))
        first.append(float(metrics["first_time"]))
        assert 0 <= first[-1] < 1 / BATCH and abs(float(metrics["mean_time"]) - 0.5) <= 0.5 / BATCH
    assert len(set(first)) == 5


def test_standing_statistics_are_found_before_sampling():
    case = make_case("toy:standing")
    state, _ = make_run(case)
    ctx = Context(jnp.int32(0), None, state.params, state.extra)
    stats = prepared(case.model, state.params, ctx, jax.random.key(0)).extra["gen"]["BatchNorm_0"]
    # From the statistics of a normalised batch, by hand, of many draws.
    dense = state.params["gen"]["Dense_0"]
    h = jax.random.normal(jax.random.key(1), (100_000, toys.LATENT)) @ dense["kernel"] + dense["bias"][None, :]
    np.testing.assert_allclose(stats["mean"], h.mean(axis=0), atol=0.25)
    np.testing.assert_allclose(stats["var"], h.var(axis=0), rtol=0.4)
    assert np.any(flat(stats) != flat(state.extra["gen"]["BatchNorm_0"]))
    again = prepared(case.model, state.params, ctx, jax.random.key(0)).extra["gen"]["BatchNorm_0"]
    np.testing.assert_array_equal(flat(stats), flat(again))


def test_frozen_models_are_read_by_role_and_stay_out_of_the_state():
    case = make_case("toy:guided")
    assert set(case.frozen) == {"classifier", "autoencoder"}
    assert set(case.frozen["autoencoder"].frozen) == {"autoencoder"}
    state, step = make_run(case)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, state.ema)]
    assert set(state.params) == set(state.ema) == set(state.opt) == {"push"} and sizes[0] == sizes[1]

    def loss_with(frozen):
        state, step = make_run(case)
        return float(step(state, frozen, step_batch(case.model))[1]["loss"])

    reference = loss_with(parallel.replicate(case.frozen))
    inner = case.frozen["autoencoder"]
    innermost = inner.frozen["autoencoder"]
    others = {
        "classifier": case.frozen["classifier"]._replace(params=shifted(case.frozen["classifier"].params)),
        "autoencoder": inner._replace(frozen={"autoencoder": innermost._replace(params=shifted(innermost.params))}),
    }
    for role, other in others.items():
        assert loss_with({**case.frozen, role: other}) != pytest.approx(reference, rel=1e-4), role


def shifted(params):
    return jax.tree.map(lambda x: x + 0.5 * jnp.sign(x + 0.1), params)


def test_init_sees_the_frozen_models():
    case = make_case("toy:latent_prior")
    batch = step_batch(case.model)
    params, _ = case.model.init(jax.random.key(0), batch, case.frozen)
    frozen = case.frozen["autoencoder"]
    z = make_case("toy:vae").model.encode(frozen.params, Context(0), None, batch["image"], {})
    np.testing.assert_allclose(params["prior"]["mean"], z.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_model_without_a_sampler_says_what_it_can():
    model = make_case("toy:classifier").model
    with pytest.raises(NotSupported, match="^toy classifier cannot sample: it can logits$"):
        require_capability(model, "sample")
    reason = model._replace(why_not={"sample": "it draws nothing"})
    with pytest.raises(NotSupported, match="^toy classifier cannot sample: it draws nothing; it can logits$"):
        require_capability(reason, "sample")
    with pytest.raises(NotSupported, match="^toy classifier cannot decode: it can logits$"):
        require_capability(reason, "decode")


def test_few_programs_are_compiled_whatever_the_number_of_images():
    assert [batch_of(n, 64) for n in (1, 2, 3, 5, 9, 33, 63, 64, 65, 1000)] == [1, 2, 4, 8, 16, 64, 64, 64, 64, 64]
    assert batch_of(100, 100) == 100
    some_images("toy:vae", 11)
    with compilations() as messages:
        for n in (9, 13, 16):
            some_images("toy:vae", n)
    model = make_case("toy:vae").model
    assert compiled.cache_info().currsize and model.sample is not None
    assert not [line for line in messages if "Compiling" in line and "call" in line], messages


def test_parameters_in_bfloat16_stay_so():
    case = make_case("toy:vae")

    def init(key, batch, frozen):
        params, extra = case.model.init(key, batch, frozen)
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), extra

    model = case.model._replace(init=init)
    for optimiser in (SGD, Optimiser(), Optimiser(name="adamw", weight_decay=0.1, clip_norm=1.0)):
        state, step = make_run(Case(model, {}), optimiser=optimiser)
        types = jax.tree.map(jnp.result_type, state)
        state, _ = step(state, {}, step_batch(model))
        assert jax.tree.map(jnp.result_type, state) == types
        with compilations() as messages:
            state, metrics = step(state, {}, step_batch(model, 1))
        assert not [line for line in messages if "Compiling" in line], messages
        assert np.isfinite(metrics["loss"]) and jax.tree.leaves(state.params)[0].dtype == jnp.bfloat16


def test_roles_that_no_phase_trains_are_refused():
    model = make_case("toy:vae").model
    phase = model.phases[0]._replace(trains=("enc",))
    with pytest.raises(UserError, match="^toy vae has parameters of dec, enc: its phases train enc"):
        make_run(Case(model._replace(phases=(phase,)), {}))
    with pytest.raises(UserError, match="has parameters of dec, enc: its phases train dec, enc, x"):
        make_run(Case(model._replace(phases=(*model.phases, phase._replace(trains=("x",)))), {}))


def test_metrics_may_be_plain_numbers():
    case = make_case("toy:vae")
    state, step = make_run(case)
    assert float(step(state, {}, step_batch(case.model))[1]["constant"]) == 1.0


def test_a_step_binarises_anew_and_the_same_when_it_is_repeated():
    case = make_case("toy:vae")
    phase, place_weights = case.model.phases[0], jnp.arange(64.0).reshape(8, 8, 1)

    def loss(params, ctx, keys, batch):
        value, (metrics, extra) = phase.loss(params, ctx, keys, batch)
        return value, ({**metrics, "seen": jnp.mean(batch["image"] * place_weights[None])}, extra)

    case = case._replace(model=case.model._replace(phases=(phase._replace(loss=loss),)))
    transform = make_transform(Data(binarise="dynamic"), case.model.data, train=True)
    runs = []
    for _ in range(2):
        state, step = make_run(case, transform=transform)
        batch, seen = step_batch(case.model), []
        for _ in range(3):
            state, metrics = step(state, {}, batch)
            seen.append(float(metrics["seen"]))
        runs.append(seen)
    assert runs[0] == runs[1] and len(set(runs[0])) == 3 and 0 < min(runs[0]) and max(runs[0]) < 31.5


@pytest.mark.parametrize("bad", ["loss", "gradient", "extra", "own"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
    case = make_case("toy:energy" if bad == "own" else "toy:vae")
    phase = case.model.phases[0]

    def poisoned(params, ctx, keys, batch):
        loss, rest = phase.loss(params, ctx, keys, batch)
        if bad == "loss":
            return loss + jnp.where(ctx.step == 1, jnp.nan, 0.0), rest
        if bad == "extra":
            return loss, (rest[0], {"statistics": jnp.where(ctx.step == 1, jnp.inf, 1.0)})
        if bad == "own":  # of one example only
            buffer = rest[1]["buffer"]
            x = jnp.where((ctx.step == 1) & (batch["index"] == 5)[:, None, None], jnp.inf, buffer["x"])
            return loss, (rest[0], {"buffer": {**buffer, "x": x}})
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


def test_a_gradient_above_skip_norm_skips_the_step():
    """A loss whose gradient is a thousand times as large in step 1, between the thresholds in the others."""
    case = make_case("toy:vae")
    (phase,) = case.model.phases

    def scaled(params, ctx, keys, batch):
        loss, rest = phase.loss(params, ctx, keys, batch)
        return loss * jnp.where(ctx.step == 1, 1000.0, 1.0), rest

    case = case._replace(model=case.model._replace(phases=(phase._replace(loss=scaled),)))
    batch = step_batch(case.model)
    _, metrics = make_run(case, optimiser=Optimiser())[1](make_run(case, optimiser=Optimiser())[0], {}, batch)
    norm = float(metrics["grad_norm"])
    state, step = make_run(case, optimiser=Optimiser(clip_norm=0.5 * norm, skip_norm=10.0 * norm))
    state, metrics = step(state, {}, batch)
    assert int(metrics["skipped"]) == 0 and float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    good = jax.device_get((state.params, state.ema, state.opt, state.extra))
    state, metrics = step(state, {}, batch)
    chex.assert_trees_all_equal(good, jax.device_get((state.params, state.ema, state.opt, state.extra)))
    assert int(state.step) == 2 and int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == 1
    state, metrics = step(state, {}, batch)
    assert int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == 0
    assert np.any(flat(state.params) != flat(good[0]))


def test_repeats_take_batches_of_their_own_and_lazy_phases_rest():
    """A phase with repeats=2 that runs every other step beside gradient descent by hand: with the batch and the keys of
    every update."""
    case = make_case("toy:lazy_gan")
    plain = toys.gan(runs=every(2))
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
            key = rng.phase_key(run_key, number, phase, repeat)
            keys = jnp.stack([jax.random.fold_in(key, i) for i in range(BATCH)])
            ctx = Context(jnp.int32(number), rng.shared_key(key), {}, extra)
            gradients, (_, new) = grads[phase](params, ctx, keys, part)
            for role in plain.phases[phase].trains:
                moved = jax.tree.map(lambda p, g: p - SGD.learning_rate * g, params[role], gradients[role])
                params = {**params, role: moved}
            extra = {**extra, **jax.device_get(new)}
        for role in params:
            np.testing.assert_allclose(flat(state.params[role]), flat(params[role]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(flat(state.extra), flat(extra), rtol=1e-5, atol=1e-6)


def decays(config, count):
    """The decays of the first steps by the formulas, in float64."""
    for step in range(count):
        if config.ema_power:
            yield (1 - 1 / (step + 1)) ** (config.ema_power + 1)
        elif config.ema_half_life:
            ramp = 0.05 * BATCH * step if config.ema_warmup else np.inf
            yield 0.5 ** (BATCH / max(min(config.ema_half_life, ramp), 1e-8))
        else:
            yield min(config.ema_decay, (1 + step) / (10 + step)) if config.ema_warmup else config.ema_decay


@pytest.mark.parametrize(
    "config",
    [
        Config(ema_decay=0.3, ema_warmup=False),
        Config(ema_decay=0.3),  # the cap holds from the fourth step on
        Config(ema_half_life=2.0, batch_size=BATCH, ema_warmup=False),
        Config(ema_half_life=2.0, batch_size=BATCH),
        Config(ema_power=6.94),
    ],
)
def test_the_average_follows_its_formula(config):
    case = make_case("toy:vae")
    state, step = make_run(case, config=config)
    expected = flat(state.ema)
    for seed, decay in enumerate(decays(config, 6)):
        state, _ = step(state, {}, step_batch(case.model, seed))
        expected = decay * expected + (1 - decay) * flat(state.params)
    np.testing.assert_allclose(flat(state.ema), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes(averaged(state), state.params)
    np.testing.assert_array_equal(flat(averaged(state)), flat(state.ema))
    if not config.ema_power:
        assert np.any(flat(state.ema) != flat(state.params))


def test_without_a_decay_no_average_is_kept():
    assert average_decay(Config(ema_decay=0.0)) is None
    state, _ = make_run(make_case("toy:vae"), config=Config(ema_decay=0.0))
    assert state.ema == {} and averaged(state) == state.params


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


@pytest.mark.slow
def test_losses_and_samplers_run_under_a_users_own_transformations():
    """No axis is bound: plain jit, vmap and grad, of a model with BatchNorm too."""
    case = make_case("toy:gan")
    batch, keys = step_batch(case.model), rng.image_keys(jax.random.key(0), jnp.arange(BATCH))
    batch = {name: array[:BATCH] for name, array in batch.items()}
    params, extra = jax.jit(case.model.init)(jax.random.key(0), batch, {})
    ctx = Context(jnp.int32(0), jax.random.key(1), params, extra)
    gradients = jax.jit(jax.grad(lambda p: case.model.phases[1].loss(p, ctx, keys, batch)[0]))(params)
    assert np.any(flat(gradients["gen"]) != 0)
    doubled = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    both = jax.vmap(lambda p: case.model.sample(p, ctx, keys, {}))(doubled)
    np.testing.assert_array_equal(both[0], case.model.sample(params, ctx, keys, {}))
    assert np.any(both[0] != both[1])
