"""Operations counted by XLA, loops made good."""

import jax
import jax.numpy as jnp
import pytest

from jgen.compare.flops import program_flops

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
    from jgen.core.model import ImageSpec
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


OF_TINY = """
from jgen.cli import load_config
from jgen.compare import measure
from jgen.core.model import ImageSpec

experiment, _ = load_config("configs/vae/vae.py:tiny", measure.ROOT)
print(measure.measure(experiment, None, ImageSpec(8, 8, 1, 10, 17), 0.01)["flops_per_image"])
"""


def test_an_image_costs_the_same_on_two_devices(python):
    one, two = (float(python("-c", OF_TINY, devices=devices).stdout) for devices in (1, 2))
    # Each device updates the parameters, whose part is large in so small a model.
    assert one < two < 1.5 * one
