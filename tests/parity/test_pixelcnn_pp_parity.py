"""PixelCNN++ against plain PyTorch: blocks, resampling, the network, and the mixture of logistics in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_autoregressive import normal_params

torch = pytest.importorskip("torch")
import pixelcnn_pp_peer as peers  # noqa: E402
from same_names import GRADIENTS, VALUES, assert_close, compare, nchw, nhwc  # noqa: E402
from specs import data_of  # noqa: E402

from jgen.core import keys as rng  # noqa: E402
from jgen.core.model import Context  # noqa: E402
from jgen.models.autoregressive import pixelcnn_pp  # noqa: E402
from jgen.nn.pixelcnn_pp import U_WINDOW, UL_WINDOW, GatedResnetBlock  # noqa: E402
from jgen.prob.logistic_mixture import LogisticMixture, num_parameters  # noqa: E402

BATCH, FEATURES, CLASSES, MIXTURES = 2, 6, 4, 3


@pytest.mark.parametrize("stream", ["u", "ul"])
def test_gated_blocks_agree(stream):
    draw = np.random.default_rng(0).standard_normal
    x, u, skip = (draw((BATCH, 4, 5, FEATURES), np.float32) for _ in range(3))
    label, has_u = np.array([3, 1]), stream == "ul"
    u = u if has_u else None
    block = GatedResnetBlock(FEATURES, UL_WINDOW if has_u else U_WINDOW, has_u, True, CLASSES, 0.0, jnp.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, u, skip, label, None))["params"]

    def loss(params):
        out = block.apply({"params": params}, x, u, skip, label, None)
        return jnp.mean(out**3), out

    conv = peers.down_right if has_u else peers.down
    peer = peers.GatedResnetBlock(FEATURES, conv, has_u, True, CLASSES)

    def peer_loss():
        out = peer(nchw(x), nchw(u) if has_u else None, nchw(skip), torch.from_numpy(label))
        return (out**3).mean(), nhwc(out)

    compare(loss, normal_params(shapes), peer, peer_loss)


@pytest.mark.parametrize("height,width,channels,levels", [(5, 6, 3, 256), (4, 3, 1, 17)])
def test_the_models_loss_and_its_gradients_agree(height, width, channels, levels):
    """Odd sizes too, which the coarser resolution rounds up."""
    draw = np.random.default_rng(1)
    image = draw.integers(0, levels, (BATCH, height, width, channels)).astype(np.uint8)
    label = draw.integers(0, CLASSES, BATCH)
    config = pixelcnn_pp.Config(
        features=FEATURES, blocks=1, scales=2, mixtures=MIXTURES, dropout=0.0, class_conditional=True
    )
    model = pixelcnn_pp.make(config, data_of(height, width, channels, levels, CLASSES))
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, {}))[0]["pixelcnn"]
    keys = rng.image_keys(jax.random.key(0), jnp.arange(BATCH))

    def loss(params):
        value, _ = model.phases[0].loss({"pixelcnn": params}, Context(jnp.int32(0)), keys, batch)
        return value, ()

    peer = peers.PixelCNNPP(channels, num_parameters(MIXTURES, channels), FEATURES, 1, 2, CLASSES)

    def peer_loss():
        out = nhwc(peer(2 * nchw(image) / (levels - 1) - 1, torch.from_numpy(label)))
        log_prob = peers.mixture_log_prob(out, torch.from_numpy(image.astype(np.int64)), levels)
        return -log_prob.sum() / image.size, ()

    compare(loss, normal_params(shapes, gain=1.0), peer, peer_loss)


@pytest.mark.parametrize("channels,levels", [(3, 256), (3, 8), (1, 256), (1, 2)])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_the_mixture_of_logistics_agrees(channels, levels, spread):
    """Every pixel's log-probability and the gradient of the parameters, among them scales below the least one."""
    draw = np.random.default_rng(2)
    images = draw.integers(0, levels, (BATCH, 6, 6, channels))
    images[0, :2], images[1, :2] = 0, levels - 1
    parameters = spread * draw.standard_normal((BATCH, 6, 6, num_parameters(MIXTURES, channels)))
    parameters[..., MIXTURES * (1 + channels) : MIXTURES * (1 + 2 * channels)] -= 2.0  # log scales
    parameters = parameters.astype(np.float32)

    def loss(parameters):
        log_prob = LogisticMixture(parameters, channels, levels).pixel_log_prob(jnp.asarray(images))
        return jnp.mean(log_prob), log_prob

    (_, log_prob), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(parameters))
    tensor = torch.from_numpy(parameters.astype(np.float64)).requires_grad_()
    wanted = peers.mixture_log_prob(tensor, torch.from_numpy(images), levels)
    wanted.mean().backward()
    assert bool(torch.isfinite(wanted).all())
    assert_close(log_prob, wanted, VALUES)
    assert_close(gradient, tensor.grad, GRADIENTS)
