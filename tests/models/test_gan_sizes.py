"""GANs in the sizes of their papers have the published numbers of parameters; nothing is computed."""

import jax
import jax.numpy as jnp
import pytest
from specs import data_of

from jgen.models.gan import biggan, progan, stylegan2

# Of StyleGAN2's authors' networks for 1024x1024 (configuration F) as their program lists them; of table 2 of ProGAN's
# paper, and of BigGAN-deep for 128x128 ImageNet, in millions.
SIZES = {
    "stylegan2": (
        stylegan2,
        stylegan2.Config(channels=(32, 64, 128, 256, 512, 512, 512, 512, 512), class_conditional=False),
        (1024, 1024, 3, 256),
        {"gen": 30_370_060, "disc": 29_012_513},
        0,
    ),
    "progan": (
        progan,
        progan.Config(channels=(16, 32, 64, 128, 256, 512, 512, 512, 512), latent=512, class_conditional=False),
        (1024, 1024, 3, 256),
        {"gen": 23.1e6, "disc": 23.1e6},
        0.05e6,
    ),
    "biggan": (
        biggan,
        biggan.Config(channels=(128, 256, 512, 1024, 2048, 2048), attention=(64,)),
        (128, 128, 3, 256, 1000),
        {"gen": 50.4e6, "disc": 34.6e6},
        0.2e6,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_networks_have_their_numbers_of_parameters(name):
    system, config, shape, wanted, tolerance = SIZES[name]
    data = data_of(*shape)
    model = system.make(config, data)
    batch = {"image": jax.ShapeDtypeStruct((8, *data.image.shape), jnp.uint8)}
    if model.conditions:
        batch["label"] = jax.ShapeDtypeStruct((8,), jnp.int32)
    params, _ = jax.eval_shape(lambda key, batch: model.init(key, batch, {}), jax.random.key(0), batch)
    for role, number in wanted.items():
        assert sum(leaf.size for leaf in jax.tree.leaves(params[role])) == pytest.approx(number, abs=tolerance), role
