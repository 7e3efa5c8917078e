"""A small case of every layer and network of the GANs: see `forward_mode_cases`."""

from forward_mode_cases import DTYPE, IMAGES, KEYS, ONE_HOT, layer, normal, spectral_layers

from jgen.nn import biggan, progan, projected_discriminator, r3gan, stylegan2, stylegan3

STAGES = stylegan3.schedule(IMAGES, (3, 3), 4, 32, 1)
GAN_CASES = {
    "ConditionalBatchNorm": lambda: spectral_layers(
        biggan.ConditionalBatchNorm(0.9), normal(2, 3, 4, 3), normal(2, 5), rest=(False,)
    ),
    "biggan.SelfAttention": lambda: spectral_layers(biggan.SelfAttention(), normal(2, 4, 2, 8), rest=(False,)),
    "GeneratorBlock": lambda: spectral_layers(
        biggan.GeneratorBlock(4, True, 0.9, DTYPE), normal(2, 2, 3, 8), normal(2, 5), rest=(False,)
    ),
    "biggan.DiscriminatorBlock": lambda: spectral_layers(
        biggan.DiscriminatorBlock(6, True, DTYPE), normal(2, 4, 2, 4), rest=(False,)
    ),
    "biggan.Generator": lambda: spectral_layers(
        biggan.Generator((8, 8), 1, (8,), 3, IMAGES, 0.9), normal(2, 3), rest=(ONE_HOT, False)
    ),
    "biggan.Discriminator": lambda: spectral_layers(
        biggan.Discriminator((8, 8), 1, (8,)), normal(2, 8, 8, 1), rest=(ONE_HOT, False)
    ),
    "EqualisedDense": lambda: layer(stylegan2.EqualisedDense(4), normal(2, 3)),
    "EqualisedConv": lambda: layer(stylegan2.EqualisedConv(4, down=True), normal(2, 4, 6, 3)),
    "StyledConv": lambda: layer(stylegan2.StyledConv(4, True), normal(2, 3, 4, 3), normal(2, 5), rest=(KEYS,)),
    "ToImage": lambda: layer(stylegan2.ToImage(2), normal(2, 3, 4, 3), normal(2, 5)),
    "Mapping": lambda: layer(stylegan2.Mapping(4, 2, 1.0), normal(2, 3), rest=(ONE_HOT,)),
    "Synthesis": lambda: layer(stylegan2.Synthesis((3, 4), IMAGES), normal(2, 4, 5), rest=(KEYS,)),
    "stylegan2.Generator": lambda: layer(
        stylegan2.Generator((3, 4), 5, 1, 0.5, IMAGES), normal(2, 3), rest=(ONE_HOT, KEYS, False)
    ),
    "stylegan2.DiscriminatorBlock": lambda: layer(stylegan2.DiscriminatorBlock(4), normal(2, 4, 6, 3)),
    "stylegan2.Discriminator": lambda: layer(
        stylegan2.Discriminator((3, 4), 1, 2), normal(2, 8, 8, 1), rest=(ONE_HOT,)
    ),
    "FourierInput": lambda: layer(stylegan3.FourierInput(STAGES[0][0].before), normal(2, 5)),
    "FilteredLayer": lambda: layer(stylegan3.FilteredLayer(STAGES[1][2]), normal(2, 6, 6, 4), normal(2, 5)),
    "stylegan3.Synthesis": lambda: layer(stylegan3.Synthesis(STAGES, 0), normal(2, 5)),
    "stylegan3.Generator": lambda: layer(stylegan3.Generator(STAGES, 0, 5, 1, 3), normal(2, 3), rest=(ONE_HOT, False)),
    "Mixing": lambda: layer(
        projected_discriminator.Mixing(2), [normal(2, 4, 4, 3), normal(2, 2, 2, 4), normal(2, 1, 1, 5)]
    ),
    "Head": lambda: spectral_layers(
        projected_discriminator.Head(1, 8, 3, 0.9), normal(2, 4, 4, 2), rest=(ONE_HOT, False)
    ),
    "ProjectedDiscriminator": lambda: spectral_layers(  # in its parameters: ReLU6 has kinks
        projected_discriminator.ProjectedDiscriminator("random", 32, 2, 3, 0.9),
        rest=(normal(2, 8, 8, 1), ONE_HOT, False),
    ),
    "BiasedActivation": lambda: layer(r3gan.BiasedActivation(), normal(2, 3, 4, 3)),
    "r3gan.Block": lambda: layer(r3gan.Block(2, 4, 1.0), normal(2, 3, 4, 4)),
    "progan.Generator": lambda: layer(progan.Generator((3, 4), IMAGES, 1, 0.3), normal(2, 3), rest=(ONE_HOT,)),
    "progan.Discriminator": lambda: layer(progan.Discriminator((3, 4), 2, 1, 0.3), normal(2, 8, 8, 1), rest=(ONE_HOT,)),
    "r3gan.Generator": lambda: layer(r3gan.Generator((4, 4), 1, 2, 4, 3, IMAGES), normal(2, 3), rest=(ONE_HOT,)),
    "r3gan.Discriminator": lambda: layer(r3gan.Discriminator((4, 4), 1, 2, 4, 3), normal(2, 8, 8, 1), rest=(ONE_HOT,)),
}
