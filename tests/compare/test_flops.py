"""Operations counted by XLA, loops made good."""

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from jgen import cli
from jgen.compare import flops
from jgen.compare.flops import program_flops
from jgen.core.backend import plain_forms
from jgen.core.model import ImageSpec
from jgen.errors import UserError
from jgen.nn.attention import attention
from jgen.nn.conv import conv, conv_transpose

A = jax.ShapeDtypeStruct((16, 16), jnp.float32)
ONE = 2 * 16**3  # a product of two such matrices


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
    found = program_flops(function, A)
    # Loop counters and sums come on top: less than a tenth of one product in each turn.
    assert products * ONE <= found <= 1.1 * products * ONE


def test_a_training_step_costs_what_its_unrolled_layers_do():
    """Glow's scanned steps: twice the depth, twice the operations."""
    import numpy as np

    from jgen.core import parallel
    from jgen.models.flow import glow
    from jgen.train.config import Config
    from jgen.train.optimisers import make_optimiser
    from jgen.train.step import init_state, make_train_step

    found = []
    for depth in (2, 4):
        model = glow.make(glow.Config(scales=1, depth=depth, width=8), ImageSpec(4, 4, 1, 10, 256))
        optimisers = {"flow": make_optimiser(Config())}
        batch = {"image": np.zeros((4, 4, 4, 1), np.uint8), "label": np.zeros(4, np.int32)}
        batch["index"] = np.arange(4, dtype=np.int32)
        init = lambda: init_state(model, optimisers, jax.random.key(0), batch, False)
        state = parallel.replicate(jax.jit(init)())
        step = make_train_step(model, optimisers)
        found.append(program_flops(lambda s, b: step(s, {}, b, 0), state, batch))
    assert found[1] == pytest.approx(2 * found[0], rel=0.15)


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
        found = program_flops(trained, *shapes) / 2  # of two images
    assert 0.85 * 3 * products < found < 1.12 * 3 * products


def test_a_configuration_is_counted_by_a_process_of_its_own(cache, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    found = flops.counted_apart("configs/vae/vae.py:tiny", (16,))
    assert list(found) == ["8", "16"]
    experiment, _ = cli.load_config("configs/vae/vae.py:tiny", ROOT)
    here = flops.training_flops(experiment, None, ImageSpec(8, 8, 1, 10, 17))
    assert found["8"] == pytest.approx(here, rel=1e-3) and found["16"] > 1.5 * found["8"]
    with pytest.raises(UserError, match="^operations of nowhere.py could not be counted: there is no configuration"):
        flops.counted_apart("nowhere.py", ())


def test_a_size_that_the_model_cannot_be_made_for_has_no_count(cache):
    found = flops.at_sizes("configs/flow/glow.py:tiny", (6, 7))
    assert found["8"] > 0 and found["7"] is None
