"""Operations counted by XLA, loops made good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretended import ALONE, STAGED

from jgen.compare import flops
from jgen.compare.flops import program_flops
from jgen.compare.systems import load_training
from jgen.core.backend import plain_forms
from jgen.core.model import DataSpec, ImageSpec
from jgen.errors import UserError
from jgen.nn.attention import attention
from jgen.nn.conv import conv, conv_transpose

A = jax.ShapeDtypeStruct((16, 16), jnp.float32)
ONE = 2 * 16**3  # a product of two such matrices
EYE = np.eye(16, dtype=np.float32)


def product(x):
    return x @ x


def repeated(x, times):
    return jax.lax.scan(lambda h, _: (h @ x, None), x, length=times)[0]


def nested(x):
    return jax.lax.scan(lambda h, _: (repeated(h, 3), None), x, length=5)[0]


def within_jit(x):
    return jax.jit(lambda y: repeated(y, 4))(x) @ x


def backwards(x):
    return jax.grad(lambda y: jnp.sum(repeated(y, 6)))(x)


@pytest.mark.parametrize(
    "function,products",
    [(product, 1), (lambda x: repeated(x, 7), 7), (nested, 15), (within_jit, 5), (backwards, 18)],
    ids=["product", "scan", "nested", "within jit", "gradient"],
)
def test_products_are_counted_as_often_as_they_run(function, products):
    # Loop counters and sums come on top: less than a tenth of one product in each turn.
    assert products * ONE <= program_flops(function, A) <= 1.1 * products * ONE


def until(x, turns):
    """`turns` products in a loop whose length is known only when it runs."""
    return jax.lax.while_loop(lambda v: v[0] < turns, lambda v: (v[0] + 1, v[1] @ x), (0, x))[1]


def unrolled(x, turns):
    """The same computation, written out."""
    h = x
    for _ in range(turns):
        h = h @ x
    return h


def in_scan(step):
    """Loops of 0, 1, 2 and 3 turns in a scan."""
    return lambda x: jax.lax.scan(lambda h, turns: (step(h, turns), None), x, jnp.arange(4))[0]


def in_scan_unrolled(x):
    for turns in range(4):
        x = unrolled(x, turns)
    return x


def chosen(step):
    """A loop of 3 turns in two of the six turns of a scan, and a product in the others."""

    def body(h, i):
        return jax.lax.cond(i % 3 == 0, lambda y: step(y, 3), product, h), None

    return lambda x: jax.lax.scan(body, x, jnp.arange(6))[0]


def chosen_unrolled(x):
    for i in range(6):
        x = unrolled(x, 3) if i % 3 == 0 else product(x)
    return x


@jax.custom_vjp
def solve(x):
    return until(x, 4)


solve.defvjp(lambda x: (solve(x), x), lambda x, g: (until(x, 2) * g,))


def solve_gradient(x):
    return jax.value_and_grad(lambda y: jnp.sum(solve(y)))(x)


def solve_unrolled(x):
    return jnp.sum(unrolled(x, 4)), unrolled(x, 2)


def until_of_until(x):
    def body(v):
        return v[0] + 1, until(v[1], v[0])

    return jax.lax.while_loop(lambda v: v[0] < 4, body, (0, x))[1]


@pytest.mark.parametrize(
    "function,same",
    [
        (lambda x: until(x, 5), lambda x: unrolled(x, 5)),
        (lambda x: until(x, 0) @ x, product),
        (jax.jit(in_scan(until)), in_scan_unrolled),
        (jax.checkpoint(jax.jit(chosen(until))), chosen_unrolled),
        (until_of_until, in_scan_unrolled),
        (solve_gradient, solve_unrolled),
        (lambda x: until(x, 2) @ jax.jit(until)(x, 3), lambda x: unrolled(x, 2) @ unrolled(x, 3)),
    ],
    ids=["while", "no turn", "scan", "cond", "while of while", "custom_vjp", "jit"],
)
def test_a_while_loop_costs_what_its_turns_do_written_out(function, same):
    wanted = program_flops(same, A)
    assert wanted <= program_flops(function, EYE) <= wanted + 0.2 * ONE  # of counters and conditions


def test_under_vmap_a_loop_runs_as_often_as_its_slowest_example_needs():
    xs, turns = np.stack([EYE] * 4), np.array([1, 7, 3, 2])
    outcome = program_flops(jax.jit(jax.vmap(until)), xs, turns)
    wanted = program_flops(jax.vmap(lambda x: unrolled(x, 7)), xs)
    assert wanted <= outcome <= 1.05 * wanted


def test_a_program_without_a_while_loop_is_not_run():
    def values():
        raise AssertionError("it was run")

    assert program_flops(nested, A, values=values) > 0
    with pytest.raises(AssertionError, match="it was run"):
        program_flops(lambda x: until(x, 3), A, values=values)


def test_a_step_that_solves_adaptively_is_counted_by_its_turns(cache, monkeypatch):
    """A loop in the loss, whose length depends on the batch: by way of a configuration's whole training step."""
    training = load_training(ALONE.training.config.replace(":digits", ":tiny"))
    plain, make = flops.training_flops(training), flops.make_program

    def with_loop(training, size):
        program = make(training, size)

        def local(number):
            step = program.local_step(number)

            def run(state, frozen, batch):
                key_turns = 10 + (batch["image"].max() > 0).astype(jnp.int32)
                return step(state, frozen, batch), until(jnp.eye(16), key_turns)

            return run

        return program._replace(local_step=local)

    monkeypatch.setattr(flops, "make_program", with_loop)
    more = (flops.training_flops(training) - plain) * training.experiment.train.batch_size
    assert 11 * ONE <= more <= 11.5 * ONE


@pytest.mark.slow
def test_a_training_step_costs_what_its_unrolled_layers_do():
    """Glow's scanned steps: twice the depth, twice the operations."""
    from jgen.models.flow import glow
    from jgen.train.config import Config
    from jgen.train.optimisers import make_optimiser
    from jgen.train.step import init_state, local_step

    def operations(depth):
        model = glow.make(glow.Config(scales=1, depth=depth, width=8, class_conditional=False), IMAGES)
        optimisers = {"flow": make_optimiser(Config())}
        batch = {"image": np.zeros((4, 4, 4, 1), np.uint8), "index": np.arange(4, dtype=np.int32)}
        state = jax.jit(lambda: init_state(model, optimisers, jax.random.key(0), batch, False))()

        def step(state, batch):
            return local_step(model, optimisers, None, 1, None, (0,), state, {}, {}, batch)

        return program_flops(step, state, {name: array[None] for name, array in batch.items()})

    assert operations(4) == pytest.approx(2 * operations(2), rel=0.15)


IMAGES = DataSpec(ImageSpec(4, 4, 1, 256))


@pytest.mark.parametrize(
    "function,arrays,products",
    [
        (conv, [(2, 16, 16, 32), (3, 3, 32, 64)], 2 * 9 * 32 * 64 * 16**2),
        (lambda x, kernel: conv(x, kernel, cpu="scan"), [(2, 16, 16, 4), (3, 3, 4, 64)], 2 * 9 * 4 * 64 * 16**2),
        (lambda x, kernel: conv(x, kernel, 2), [(2, 32, 32, 16), (4, 4, 16, 32)], 2 * 16 * 16 * 32 * 16**2),
        (conv_transpose, [(2, 16, 16, 32), (4, 4, 16, 32)], 2 * 16 * 16 * 32 * 16**2),
        (attention, [(2, 256, 4, 32)] * 3, 2 * 4 * 256**2 * 32 * 2),
    ],
    ids=["3x3", "few channels", "stride 2", "transposed", "attention"],
)
def test_layers_count_as_their_formulas_do_whatever_form_is_fast_here(function, arrays, products):
    """The forward pass once and its gradient twice, less what lies beyond the images' borders."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in arrays]

    def trained(*args):
        return jax.grad(lambda *given: jnp.sum(function(*given) ** 2), tuple(range(len(args))))(*args)

    with plain_forms():
        outcome = program_flops(trained, *shapes) / 2  # of two images
    assert 0.85 * 3 * products < outcome < 1.12 * 3 * products


@pytest.mark.slow
def test_a_configuration_is_counted_by_a_process_of_its_own(cache, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    config = STAGED.training.config.replace(":digits", ":tiny")
    counts = flops.count_in_process(config, (16, 7))
    assert list(counts) == ["8", "16", "7"] and counts["7"] is None  # the model cannot be made for that
    assert counts["8"] == pytest.approx(flops.training_flops(load_training(config)), rel=1e-3)
    assert counts["16"] > 1.5 * counts["8"]
    with pytest.raises(UserError, match="^operations of nowhere.py could not be counted: there is no configuration"):
        flops.count_in_process("nowhere.py", ())
