"""A small case of every layer and network of `jgen.nn`: what is differentiated, and in what."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from naive_autoregressive import normal_params

from jgen.core.model import ImageSpec
from jgen.nn import (
    adm,
    attention,
    autoencoder,
    autoregressive_flow,
    clip,
    clip_text,
    code_pixelcnn,
    condition_unet,
    conv,
    cross_attention,
    dcgan,
    dit,
    dropout,
    embedding_prior,
    embeddings,
    energy,
    first_stage,
    flow,
    gan,
    gated_pixelcnn,
    local_pixelcnn,
    masked_convolution,
    normalization,
    pixel_transformer,
    pixelcnn,
    pixelcnn_pp,
    pixelrnn,
    quantile_head,
    resampling,
    residual_flow,
    shifted_convolution,
    song_unet,
    spectral_norm,
    style_encoder,
    tarflow,
    text_image_transformer,
    transformer,
    unet,
    vae,
    variational_noise,
    vd_vae,
    velocity_field,
)
from jgen.nn.sparse_attention import MASKED, Pattern

KEYS = jax.random.split(jax.random.key(2), 2)
T, LABEL = np.array([3.0, 40.0], np.float32), np.array([0, 2])
ONE_HOT = np.eye(3, dtype=np.float32)[LABEL]
DTYPE = jnp.float32
IMAGES = ImageSpec(8, 8, 1, 256)
IMAGE = np.zeros((2, 3, 4, 2), np.float32)  # beside the input of PixelRNN's layers


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def layer(module, *inputs, rest=()):
    """(function, inputs) of a module: differentiated in its parameters and in `inputs`, not in `rest`."""

    def init(key, *inputs):
        return module.init(key, *inputs, *rest)

    shapes = dict(jax.eval_shape(init, jax.random.key(0), *inputs))
    params = normal_params(shapes.pop("params", {}))
    # Parts that are no parameters (orders and signs of a flow, statistics) are those of a real start.
    start = jax.jit(init)(jax.random.key(0), *map(jnp.asarray, inputs)) if shapes else {}
    fixed = {name: start[name] for name in shapes}

    def apply(params, *inputs):
        return module.apply({"params": params, **fixed}, *inputs, *rest)

    return apply, (params, *inputs)


def scanned_convolutions():
    def apply(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(conv.conv(x, kernel, cpu="scan")), None), x, kernels)[0]

    return apply, (0.3 * normal(3, 3, 3, 4, 4), normal(2, 6, 5, 4))


def chain():
    step = flow.InvertibleConv()

    def init(key, x, setting):
        return step.init_with_output(key, x)

    x = normal(2, 2, 2, 4)
    stacked, _ = flow.init_chain(init, jax.random.key(0), x, jnp.arange(3))
    fixed = stacked["fixed"]

    def apply(params, x):
        def run(variables, x):
            return step.apply({"params": variables[0], "fixed": variables[1]}, x)

        return flow.apply_chain(run, (params, fixed), x)

    return apply, (stacked["params"], x)


def integers(network, given=LABEL):
    """A network of integers and classes, or features, differentiated in its parameters."""
    x = np.random.default_rng(0).integers(0, 4, (2, 4, 5, 2))
    variables = jax.eval_shape(network.init, jax.random.key(0), x, given)
    return lambda params: network.apply({"params": params}, x, given), (normal_params(variables["params"]),)


def texts(network, num):
    """A network of tokens, of which the last is the end, differentiated in its parameters."""
    tokens = np.array([[1, 3, 1, 2], [3, 4, 2, 1]])[:, :num]
    variables = jax.eval_shape(network.init, jax.random.key(0), tokens)
    return lambda params: network.apply({"params": params}, tokens), (normal_params(variables["params"]),)


def embedding_prior_text():
    """Features of two texts, of one of which the last token does not count, and one that is not given."""
    tokens = cross_attention.Tokens(normal(2, 3, 5), np.array([[True, True, False], [True, True, True]]))
    return embedding_prior.Text(tokens, normal(2, 4), np.array([True, False]))


def codes_of_embeddings():
    """A prior of codes, differentiated in its parameters."""
    sizes = {"features": 8, "heads": 2, "layers": 2, "hidden": 8, "key_features": 8}
    network = embedding_prior.CodePrior((1, 3, 1), 4, **sizes, text_length=3, products=5)
    x, cond = np.zeros((2, 1, 3, 1), np.int32), {"text": embedding_prior_text(), "product": np.array([1, 4])}
    variables = jax.eval_shape(network.init, jax.random.key(0), x, cond)
    return lambda params: network.apply({"params": params}, x, cond), (normal_params(variables["params"]),)


def glyphs(network):
    """An encoder of sets of pictures, of which one is absent, differentiated in its parameters and in the pictures."""
    x, characters = normal(2, 2, 8, 8, 1), np.array([[0, 2], [1, 3]])
    variables = jax.eval_shape(network.init, jax.random.key(0), x, characters)

    def features(params, x):
        return network.apply({"params": params}, x, characters).features

    return features, (normal_params(variables["params"]), x)


def codes_by_class(network):
    """A network of one code at a place and conditions, differentiated in its parameters."""
    x, cond = np.random.default_rng(0).integers(0, 4, (2, *network.shape, 1)), {"label": LABEL}
    variables = jax.eval_shape(network.init, jax.random.key(0), x, cond)
    return lambda params: network.apply({"params": params}, x, cond), (normal_params(variables["params"]),)


def integers_alone(network):
    """A network of codes without conditions, differentiated in its parameters."""
    x = np.random.default_rng(0).integers(0, 4, (2, 2, 3, 1))
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    return lambda params: network.apply({"params": params}, x), (normal_params(variables["params"]),)


def sequence_of_pixels(network):
    """A network of integers and conditions, differentiated in its parameters."""
    x = np.random.default_rng(0).integers(0, 4, (2, *network.shape))
    cond = {"label": LABEL, "text": np.array([[1, 0], [2, 3]])}
    variables = jax.eval_shape(network.init, jax.random.key(0), x, cond)
    return lambda params: network.apply({"params": params}, x, cond), (normal_params(variables["params"]),)


def text_and_codes(cls, of_text):
    """The logits of codes after a text, or those of the text's third token, differentiated in the parameters."""
    sizes = {"features": 8, "heads": 2, "layers": 2, "hidden": 8, "key_features": 8}
    network = cls((2, 2, 1), 3, **sizes, text="text", vocabulary=5, text_length=4)
    codes, text = np.zeros((2, 2, 2, 1), np.int32), np.array([[1, 3, 2, 0], [1, 4, 3, 2]], np.int32)
    variables = jax.eval_shape(network.init, jax.random.key(0), codes, {"text": text})

    def of_codes(params):
        text_logits, code_logits = network.apply({"params": params}, codes, {"text": text})
        return jnp.where(text_logits > MASKED, text_logits, 0.0), code_logits

    def third_token(params):
        caches = network.apply({"params": params}, 2, {}, method="start")
        for p in range(2):
            given = {"params": params}, caches, jnp.int32(p), text[:, p], {}
            logits, caches = network.apply(*given, method="step")
        return jnp.where(logits > MASKED, logits, 0.0)

    return third_token if of_text else of_codes, (normal_params(variables["params"]),)


def embedding(levels, size):
    module, x = gated_pixelcnn.PixelEmbedding(levels, size), np.random.default_rng(0).integers(0, levels, (2, 3, 3, 1))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return lambda params: module.apply({"params": params}, x), (normal_params(variables["params"]),)


def draw_posterior(prior, posterior):
    return posterior.mean + jnp.exp(0.5 * posterior.logvar)


def top_down():
    levels = (vd_vae.Level(2, 2, 1), vd_vae.Level(4, 4, 1))
    module = vd_vae.TopDown(levels, 4, 2, 2, 3, 2, num_classes=3)
    features = {2: normal(2, 2, 2, 4), 4: normal(2, 4, 4, 4)}
    rest = (LABEL, lambda layer, prior, posterior: draw_posterior(prior, posterior))
    variables = jax.eval_shape(lambda key: module.init(key, 2, features, *rest), jax.random.key(0))

    def apply(params, features):
        return module.apply({"params": params}, 2, features, *rest)

    return apply, (normal_params(variables["params"], gain=1.0), features)


def spectral():
    """u is the singular vector: what is constant to the gradient there does not move the norm either."""
    kernel = normal(3, 3, 2, 4)
    u = spectral_norm.start_vector(jax.random.key(0), kernel, iterations=100)
    return lambda kernel: spectral_norm.spectral_norm(kernel, u)[0], (kernel,)


def spectral_layers(module, *inputs, rest):
    """`layer` of a module with spectral normalisation, its vectors u the singular vectors of its kernels: see above."""
    shapes = jax.eval_shape(lambda key, *inputs: module.init(key, *inputs, *rest), jax.random.key(0), *inputs)
    params = normal_params(shapes["params"])
    kernels, fixed = flatten_dict(params), flatten_dict(shapes["batch_stats"])
    for path, spec in fixed.items():
        if path[-1] == "u":
            kernel = np.asarray(kernels[*path[:-1], "kernel"])
            fixed[path] = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), full_matrices=False)[2][0]
        else:
            fixed[path] = {"mean": np.zeros, "var": np.ones}[path[-1]](spec.shape, spec.dtype)
    fixed = unflatten_dict(fixed)

    def apply_converged(params, *inputs):
        return module.apply({"params": params, "batch_stats": fixed}, *inputs, *rest)

    return apply_converged, (params, *inputs)


def variational_dequantisation():
    """The image is an integer: u and log q by the parameters and the noise."""
    module, images, eps = variational_noise.VariationalNoise(4, 4), IMAGE[..., :1] % 4, normal(2, 3, 4, 1)
    variables = jax.eval_shape(lambda key: module.init(key, images, eps), jax.random.key(0))

    def apply(params, eps):
        return module.apply({"params": params}, images, eps)

    return apply, (normal_params(variables["params"]), eps)


MASK = np.arange(5)[None] < np.array([[3], [5]])
TOKENS = cross_attention.Tokens(normal(2, 5, 6), MASK)
CLIP_TEXT = clip_text.Config(5, 4, 8, 2, 2, 8, "quick_gelu", projection=3, end=4)
CONDITION_UNET = condition_unet.Config((4, 8), 1, (0, 1), 1, (1, 2), context=6, pooled=3, size_features=4, groups=2)
SIZES = np.ones((2, condition_unet.NUM_SIZES), np.float32)
SPARSE = (Pattern("local", 3), Pattern("column", 3))
UNET = unet.UNet((8,), 1, (), 8, 4, 0.1, 3, 1)
NCSNPP = song_unet.SongUNet((8,), 1, (), 8, 4, 0.1, 3, 1, architecture="ncsnpp")
ENCODER = adm.AdmEncoder((8, 8), 1, (2,), 4, 4, 0.1, 3)
DIT = dit.Config(patch=2, features=8, layers=2, heads=2, mlp_ratio=2.0, dropout=0.1)
STAGE = first_stage.Config((8, 8), 1, 2, groups=4)
CASES = {
    "conv 3x3": lambda: (conv.conv, (normal(2, 16, 16, 32), 0.1 * normal(3, 3, 32, 32))),
    "conv 4x4 stride 2": lambda: (lambda x, k: conv.conv(x, k, 2), (normal(2, 8, 8, 16), 0.1 * normal(4, 4, 16, 16))),
    "conv_transpose": lambda: (conv.conv_transpose, (normal(2, 4, 4, 16), 0.1 * normal(4, 4, 16, 16))),
    "convolutions in a scan": scanned_convolutions,
    "conv of few channels": lambda: (
        lambda x, kernel: conv.conv(x, kernel, padding=((1, 0), (1, 1)), cpu="patches"),
        (normal(2, 5, 6, 3), normal(2, 3, 3, 4)),
    ),
    "Conv": lambda: layer(conv.Conv(16, 4, 2), normal(2, 8, 8, 16)),
    "Conv 3x3 stride 2": lambda: layer(conv.Conv(8, stride=2), normal(2, 6, 4, 8)),
    "ConvTranspose": lambda: layer(conv.ConvTranspose(16), normal(2, 4, 4, 16)),
    "group_norm": lambda: (
        lambda *args: normalization.group_norm(*args, 2, silu=True),
        (normal(2, 3, 4, 6), normal(6), normal(6)),
    ),
    "GroupNorm": lambda: layer(normalization.GroupNorm(2), normal(2, 3, 4, 6)),
    "attention": lambda: (attention.attention, (normal(2, 6, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4))),
    "SelfAttention2D": lambda: layer(attention.SelfAttention2D(4, 2), normal(2, 3, 4, 8)),
    "attention with a mask": lambda: (
        lambda *x: attention.attention(*x, MASK),
        (normal(2, 6, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4)),
    ),
    "CrossAttention": lambda: layer(cross_attention.CrossAttention(2), normal(2, 4, 8), rest=(TOKENS,)),
    "TransformerBlock": lambda: layer(cross_attention.TransformerBlock(2), normal(2, 4, 8), rest=(TOKENS,)),
    "SpatialTransformer": lambda: layer(cross_attention.SpatialTransformer(4, 2), normal(2, 2, 3, 8), rest=(TOKENS,)),
    "dropout": lambda: (lambda x: dropout.dropout(x, KEYS, 0.5), (normal(2, 3, 4, 5),)),
    "sinusoidal_embedding": lambda: (lambda t: embeddings.sinusoidal_embedding(0.1 * t, 8), (T,)),
    "nearest": lambda: (resampling.nearest, (normal(2, 2, 3, 4),)),
    "ResnetBlock": lambda: layer(unet.ResnetBlock(32, 4, 0.1), normal(2, 16, 16, 8), normal(2, 8), rest=(KEYS,)),
    "adm.AdmBlock": lambda: layer(adm.AdmBlock(8, 4, 0.1), normal(2, 4, 4, 8), normal(2, 8), rest=(KEYS,)),
    "adm.AttentionPool": lambda: layer(adm.AttentionPool(4, 3), normal(2, 2, 2, 8)),
    "adm.AdmEncoder": lambda: layer(ENCODER, normal(2, 4, 4, 1), rest=(T, KEYS)),
    "dit.Block": lambda: layer(dit.Block(DIT), normal(2, 4, 8), normal(2, 8), rest=(KEYS,)),
    "dit.DiT": lambda: layer(dit.DiT(DIT, 3, 1), normal(2, 4, 4, 1), rest=(T, LABEL, KEYS)),
    "first_stage.Block": lambda: layer(first_stage.Block(8, 4), normal(2, 4, 4, 4)),
    "first_stage.Middle": lambda: layer(first_stage.Middle(STAGE), normal(2, 2, 2, 8)),
    "first_stage.Encoder": lambda: layer(first_stage.Encoder(STAGE, 4), normal(2, 4, 4, 1)),
    "first_stage.Decoder": lambda: layer(first_stage.Decoder(STAGE, 1), normal(2, 2, 2, 2)),
    "first_stage.PatchDiscriminator": lambda: layer(first_stage.PatchDiscriminator((4, 8), 4), normal(2, 8, 8, 1)),
    "UNet": lambda: layer(UNET, normal(2, 4, 4, 1), rest=(T, LABEL, KEYS)),
    "fourier_embedding": lambda: (lambda t: embeddings.fourier_embedding(1e-3 * t, 8, 16.0), (T,)),
    "SongBlock": lambda: layer(
        song_unet.SongBlock(8, 4, (1, 3, 3, 1), "down", 4, 0.1), normal(2, 8, 8, 4), normal(2, 6), rest=(KEYS,)
    ),
    "SongBlock upwards": lambda: layer(
        song_unet.SongBlock(4, 4, (1, 1), "up"), normal(2, 3, 4, 8), normal(2, 6), rest=(None,)
    ),
    "FilteredConv": lambda: layer(song_unet.FilteredConv(4, (1, 3, 3, 1)), normal(2, 6, 4, 3)),
    "SongUNet": lambda: layer(NCSNPP, normal(2, 4, 4, 1), rest=(T, LABEL, KEYS)),
    "ResidualBlock": lambda: layer(autoencoder.ResidualBlock(), normal(2, 4, 4, 8)),
    "ConvEncoder": lambda: layer(autoencoder.ConvEncoder((8, 16), 1), normal(2, 8, 8, 1)),
    "ConvDecoder": lambda: layer(autoencoder.ConvDecoder((8, 16), 1, 1), normal(2, 2, 2, 16)),
    "Upsample": lambda: layer(autoencoder.Upsample(3, 2), normal(2, 2, 3, 4)),
    "DenseLayers": lambda: layer(autoencoder.DenseLayers((8, 6), 1), normal(2, 5)),
    "VerticalConv": lambda: layer(masked_convolution.VerticalConv(2, 4, 5, "A"), normal(2, 5, 4, 2)),
    "HorizontalConv": lambda: layer(masked_convolution.HorizontalConv(2, 4, 5, "B", 2), normal(2, 5, 4, 2)),
    "MaskedConv": lambda: layer(masked_convolution.MaskedConv(6, 4, 3, "B"), normal(2, 5, 4, 6)),
    "PixelEmbedding": lambda: embedding(4, 3),
    "GatedLayer": lambda: layer(
        gated_pixelcnn.GatedLayer(4, 4, 3, "B", 2, 0, True, 0.5, DTYPE),
        normal(2, 3, 4, 4),
        normal(2, 3, 4, 4),
        rest=(None, KEYS),
    ),
    "GatedLayer with features": lambda: layer(
        gated_pixelcnn.GatedLayer(4, 4, 3, "B", 1, 3, True, 0.5, DTYPE, True),
        normal(2, 3, 4, 4),
        normal(2, 3, 4, 4),
        rest=(LABEL, KEYS, normal(2, 3, 4, 5)),
    ),
    "CausalAttention": lambda: layer(
        code_pixelcnn.CausalAttention(4, 2, 0.5, DTYPE),
        normal(2, 3, 2, 4),
        normal(2, 3, 2, 3),
        normal(6, 4),
        rest=(KEYS,),
    ),
    "OutputBlock": lambda: layer(code_pixelcnn.OutputBlock(4, 6, 0.5, DTYPE), normal(2, 3, 4, 4), rest=(KEYS,)),
    "ConditioningStack": lambda: integers_alone(code_pixelcnn.ConditioningStack(4, 3, 8, 1, 1)),
    "CodePixelCNN": lambda: codes_by_class(code_pixelcnn.CodePixelCNN(4, (4, 5), 8, 1, 8, 3, 3, 3, 1, 2, 1, 3)),
    "GatedPixelCNN": lambda: integers(gated_pixelcnn.GatedPixelCNN(4, 2, 8, 1, 8, num_classes=3)),
    "pixelcnn.ResidualBlock": lambda: layer(
        pixelcnn.ResidualBlock(4, 3, 2, 3, 0.5, DTYPE), normal(2, 3, 4, 8), rest=(LABEL, KEYS)
    ),
    "PixelCNN": lambda: integers(pixelcnn.PixelCNN(4, 2, 4, 1, 8, num_classes=3)),
    "RowLSTM": lambda: layer(pixelrnn.RowLSTM(2, 3, 2, 3, DTYPE), normal(2, 3, 4, 4), rest=(IMAGE, LABEL)),
    "DiagonalLSTM": lambda: layer(pixelrnn.DiagonalLSTM(4, 2, 2, 3, DTYPE), normal(2, 3, 4, 4), rest=(LABEL,)),
    "DiagonalBiLSTM": lambda: layer(
        pixelrnn.DiagonalBiLSTM(2, 2, 3, DTYPE), normal(2, 3, 4, 4), normal(2, 3, 4, 2), rest=(LABEL,)
    ),
    "pixelrnn.ResidualBlock": lambda: layer(
        pixelrnn.ResidualBlock("row", 2, 3, 2, 3, 0.5, DTYPE), normal(2, 3, 4, 4), rest=(IMAGE, LABEL, KEYS)
    ),
    "PixelRNN": lambda: integers(pixelrnn.PixelRNN(4, 2, "diagonal", 4, 1, 8, num_classes=3)),
    "PointwiseBlock": lambda: layer(local_pixelcnn.PointwiseBlock(4, 2, 0.5, DTYPE), normal(2, 3, 4, 4), rest=(KEYS,)),
    "LocalPixelCNN": lambda: integers(local_pixelcnn.LocalPixelCNN(4, 2, 8, 1, 1), normal(2, 4, 5, 3)),
    "MaskedDense": lambda: layer(autoregressive_flow.MaskedDense(3, 2, 2, "B"), normal(4, 6)),
    "Made": lambda: layer(autoregressive_flow.Made(3, 2, 2, 3), normal(2, 3), rest=(LABEL,)),
    "AutoregressiveFlow": lambda: layer(
        autoregressive_flow.AutoregressiveFlow(3, 2, 1, 2, 3), normal(2, 3), rest=(LABEL,)
    ),
    "ShiftedConv": lambda: layer(shifted_convolution.ShiftedConv(2, 4, (2, 3), above=2), normal(2, 5, 4, 2)),
    "ShiftedConv of stride 2": lambda: layer(
        shifted_convolution.ShiftedConv(4, 4, (2, 2), stride=2), normal(2, 5, 4, 4)
    ),
    "ShiftedConvTranspose": lambda: layer(
        shifted_convolution.ShiftedConvTranspose(4, 3, 3), normal(2, 3, 2, 4), rest=(5, 4)
    ),
    "GatedResnetBlock": lambda: layer(
        pixelcnn_pp.GatedResnetBlock(4, (2, 2), True, True, 3, 0.5, DTYPE),
        *(normal(2, 3, 4, 4) + shift for shift in (0.0, 0.1, 0.2)),
        rest=(LABEL, KEYS),
    ),
    "Resolution": lambda: layer(
        pixelcnn_pp.Resolution(4, 1, 2, 0, 0.0, DTYPE), normal(2, 3, 4, 4), normal(2, 3, 4, 4), rest=(None, None)
    ),
    "PixelCNNPP": lambda: integers(pixelcnn_pp.PixelCNNPP(4, 2, 7, 4, 1, 2, num_classes=3)),
    "DecoderBlock": lambda: layer(
        transformer.DecoderBlock(4, 2, 6, 4, dropout_rate=0.5), normal(2, 5, 4), rest=(KEYS,)
    ),
    "CausalTransformer": lambda: layer(transformer.CausalTransformer(4, 2, 4, 6, 4, SPARSE), normal(2, 6, 4)),
    "PixelTransformer": lambda: sequence_of_pixels(
        pixel_transformer.PixelTransformer(
            (2, 3, 2), 4, 8, 2, 2, 8, 8, SPARSE, num_classes=3, text="text", vocabulary=4, text_length=2
        )
    ),
    "TextPrefix": lambda: layer(embedding_prior.TextPrefix(8, 3), rest=(embedding_prior_text(),)),
    "DiffusionPrior": lambda: layer(
        embedding_prior.DiffusionPrior(4, 3, 8, 2, 2, 8), normal(2, 4), T / 40, rest=(embedding_prior_text(),)
    ),
    "CodePrior": codes_of_embeddings,
    "TextImageTransformer": lambda: text_and_codes(text_image_transformer.TextImageTransformer, False),
    "TextTransformer": lambda: text_and_codes(text_image_transformer.TextTransformer, True),
    "QuantileHead": lambda: layer(quantile_head.QuantileHead(4, 1, 3), normal(2, 3, 1, 4), normal(2, 3, 5)),
    "ActNorm": lambda: layer(flow.ActNorm(), normal(2, 2, 3, 4)),
    "InvertibleConv": lambda: layer(flow.InvertibleConv(), normal(2, 2, 3, 4), rest=(True,)),
    "Permutation": lambda: layer(flow.Permutation(), normal(2, 2, 3, 4)),
    "ScaledConv": lambda: layer(flow.ScaledConv(4, num_classes=3), normal(2, 4, 5, 4), rest=(LABEL,)),
    "ZeroConv": lambda: layer(flow.ZeroConv(8), normal(2, 4, 5, 2)),
    "LogisticMixture": lambda: layer(flow.LogisticMixture(3), normal(2, 3, 4, 2), normal(2, 3, 4, 18)),
    "GaussianPrior": lambda: layer(flow.GaussianPrior(3), normal(2, 2, 3, 2), normal(2, 2, 3, 2), rest=(LABEL,)),
    "chain": chain,
    "dcgan.Generator": lambda: layer(dcgan.Generator((4, 8), IMAGES, 0.9, DTYPE), normal(2, 3), rest=(False,)),
    "dcgan.Discriminator": lambda: layer(
        dcgan.Discriminator((4, 8), True, "projection", 0.9, DTYPE),
        normal(2, 8, 8, 1),
        rest=(ONE_HOT, False),
    ),
    "vae.Encoder": lambda: layer(vae.Encoder("conv", (4, 8), 1, (6,), 2, 3), normal(2, 8, 8, 1), rest=(LABEL,)),
    "vae.Decoder": lambda: layer(vae.Decoder("conv", (4, 8), 1, (6,), 3, IMAGES, "pixel"), normal(2, 2), rest=(LABEL,)),
    "vd_vae.Bottleneck": lambda: layer(vd_vae.Bottleneck(4), normal(2, 3, 4, 8)),
    "vd_vae.Block": lambda: layer(vd_vae.Block(4, 1.0), normal(2, 2, 4, 8)),
    "StochasticBlock": lambda: layer(
        vd_vae.StochasticBlock(2, 4, 1.0), normal(2, 2, 2, 4), normal(2, 2, 2, 4) + 0.1, rest=(draw_posterior,)
    ),
    "StyleEncoder": lambda: glyphs(style_encoder.StyleEncoder((4, 4), 4, 3, groups=2)),
    "BottomUp": lambda: layer(
        vd_vae.BottomUp((vd_vae.Level(4, 4, 2), vd_vae.Level(2, 2, 1)), 4, 2), normal(2, 4, 4, 1)
    ),
    "TopDown": top_down,
    "spectral_norm": spectral,
    "SpectralLayer": lambda: spectral_layers(spectral_norm.SpectralLayer(4, 3), normal(2, 3, 4, 3), rest=(False,)),
    "gan.Generator": lambda: layer(gan.Generator((5,), IMAGES), normal(2, 3)),
    "gan.Discriminator": lambda: layer(gan.Discriminator((3,), 2), normal(2, 8, 8, 1), rest=(ONE_HOT,)),
    "grouped_conv": lambda: (lambda x, k: conv.grouped_conv(x, k, 2), (normal(2, 4, 3, 6), normal(3, 3, 3, 4))),
    "ClassAffine": lambda: layer(energy.ClassAffine(), normal(2, 3, 4, 5), rest=(ONE_HOT,)),
    "EnergyBlock": lambda: spectral_layers(energy.EnergyBlock(4, True), normal(2, 4, 2, 3), rest=(ONE_HOT, False)),
    "EnergyNetwork": lambda: spectral_layers(
        energy.EnergyNetwork((4, 3), 1, convolutional=False), normal(2, 4, 2, 1), rest=(ONE_HOT, False)
    ),
    "clip.AttentionPool": lambda: layer(clip.AttentionPool(2, 3), normal(2, 2, 3, 4)),
    "clip.ImageEncoder": lambda: layer(clip.ImageEncoder((4, 8), 1, 2, 2, 3), normal(2, 4, 4, 1)),
    "clip.TextEncoder": lambda: texts(clip.TextEncoder(5, 4, 2, 8, 2, 1, 3), 4),
    "ClipTextEncoder": lambda: texts(clip_text.ClipTextEncoder(CLIP_TEXT), 4),
    "clip_text.Block": lambda: layer(clip_text.Block(CLIP_TEXT), normal(2, 3, 8)),
    "ConditionUNet": lambda: layer(
        condition_unet.ConditionUNet(CONDITION_UNET, 4), normal(2, 4, 4, 4), rest=(T, TOKENS, normal(2, 3), SIZES)
    ),
    "tarflow.AutoregressiveLayer": lambda: layer(
        tarflow.AutoregressiveLayer(4, 2, 8, 2, 1, 8, 3), normal(2, 4, 2), rest=(LABEL,)
    ),
    "ConcatSquash": lambda: layer(velocity_field.ConcatSquash(3), normal(2, 3, 4, 2), normal(2, 4)),
    "LipschitzNetwork": lambda: layer(
        residual_flow.LipschitzNetwork((4, 4), num_classes=3), normal(2, 3, 4, 2), rest=(LABEL,)
    ),
    "VariationalNoise": variational_dequantisation,
    "VelocityField": lambda: layer(
        velocity_field.VelocityField((4,), num_classes=3), normal(2, 3, 4, 2), T / 40, rest=(LABEL,)
    ),
}
