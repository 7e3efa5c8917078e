"""The parts of DDPM++ and NCSN++ against those of diffusers on the same weights: outputs and gradients.

The networks as a whole have no peer there: `UNet2DModel` does not scale the sums of DDPM++, and its NCSN++ is the one
with skip connections of the image, both down and up, where jgen's has the residual encoder and the standard decoder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import peers  # noqa: E402
from diffusers.models.attention_processor import Attention  # noqa: E402
from diffusers.models.downsampling import FirDownsample2D  # noqa: E402
from diffusers.models.embeddings import GaussianFourierProjection  # noqa: E402
from diffusers.models.resnet import ResnetBlock2D  # noqa: E402
from naive_autoregressive import normal_params  # noqa: E402

from jgen.nn.embeddings import fourier_embedding  # noqa: E402
from jgen.nn.song_unet import FILTERS, FilteredConv, SongBlock  # noqa: E402

GROUPS, HEAD_DIM = 4, 8
NAMES = {
    "embedding": "resnet.time_emb_proj",
    "shortcut": "resnet.conv_shortcut",
    "attention_norm": "attention.group_norm",
    "attention_out": "attention.to_out.0",
    "conv": "Conv2d_0",
}


class Peer(torch.nn.Module):
    """A residual block of diffusers, and self-attention after it."""

    def __init__(self, channels, features, width, kernel, resample, attends):
        super().__init__()
        # A block that resamples has a shortcut of its own, as has one that changes the width.
        projects = bool(resample) or channels != features
        self.resnet = ResnetBlock2D(
            in_channels=channels,
            out_channels=features,
            temb_channels=width,
            groups=GROUPS,
            skip_time_act=True,
            kernel=kernel,
            output_scale_factor=2**0.5,
            use_in_shortcut=projects,
            up=resample == "up",
            down=resample == "down",
        )
        self.attention = None
        if attends:
            self.attention = Attention(
                features,
                heads=features // HEAD_DIM,
                dim_head=HEAD_DIM,
                rescale_output_factor=2**0.5,
                eps=1e-6,
                norm_num_groups=GROUPS,
                residual_connection=True,
                bias=True,
                _from_deprecated_attn_block=True,
            )

    def forward(self, x, embedding):
        h = self.resnet(x, embedding)
        return h if self.attention is None else self.attention(h)


def to_torch(x):
    """NHWC to a tensor NCHW."""
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def as_torch(params, like):
    """Parameters of jgen, or gradients, by their names in diffusers; every name of `like` appears, and no other."""
    tensors = {}
    for name, array in peers.flatten(jax.device_get(params)).items():
        layer, leaf = name.split("/")
        leaf = "bias" if leaf == "bias" else "weight"
        names = [NAMES.get(layer, f"resnet.{layer}")]
        if layer == "qkv":
            names = [f"attention.to_{letter}" for letter in "qkv"]
        for place, part in zip(names, np.split(array, len(names), axis=-1)):
            key = f"{place}.{leaf}"
            tensors[key] = peers.to_torch_layout(part, tuple(like[key].shape))
    assert tensors.keys() == like.keys(), set(tensors) ^ set(like)
    return tensors


def compare(module, params, inputs, peer, wanted_inputs, seed=0):
    """Outputs and gradients of the parameters of `module` and `peer`."""
    peer.load_state_dict(as_torch(params, peer.state_dict()))
    theirs = peer(*wanted_inputs)
    ours, pull = jax.vjp(lambda params: module.apply({"params": params}, *inputs), params)
    g = np.random.default_rng(seed).standard_normal(ours.shape).astype(np.float32)
    (theirs * to_torch(g)).sum().backward()
    limit = 1e-4 * max(1.0, float(jnp.abs(ours).max()))
    np.testing.assert_allclose(to_torch(ours), theirs.detach(), atol=limit)
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    for name, gradient in as_torch(pull(g)[0], wanted).items():
        limit = 2e-4 * max(1.0, float(wanted[name].abs().max()))
        np.testing.assert_allclose(gradient, wanted[name], atol=limit, err_msg=name)


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("resample", ["", "down", "up"])
@pytest.mark.parametrize("architecture,kernel", [("ddpmpp", None), ("ncsnpp", "fir")])
@pytest.mark.parametrize("channels,features", [(16, 16), (8, 16)])
def test_blocks_agree(channels, features, architecture, kernel, resample, attends):
    draw = np.random.default_rng(0).standard_normal
    x, embedding = draw((2, 8, 8, channels), np.float32), draw((2, 12), np.float32)
    block = SongBlock(features, GROUPS, FILTERS[architecture], resample, HEAD_DIM * attends)
    params = normal_params(jax.eval_shape(block.init, jax.random.key(0), x, embedding, None)["params"])
    peer = Peer(channels, features, 12, kernel, resample, attends)
    compare(block, params, (x, embedding, None), peer, (to_torch(x), torch.from_numpy(embedding)))


def test_filtered_convolutions_agree():
    x, layer = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32), FilteredConv(16, (1, 3, 3, 1))
    params = normal_params(jax.eval_shape(layer.init, jax.random.key(0), x)["params"])
    compare(layer, params, (x,), FirDownsample2D(3, 16, use_conv=True), (to_torch(x),))


def test_fourier_features_agree():
    t = np.array([-1.6, 0.0, 0.4, 1.1], np.float32)
    peer = GaussianFourierProjection(8, 16.0, set_W_to_weight=False, log=False, flip_sin_to_cos=False)
    peer.weight.data = torch.from_numpy(16 * np.random.RandomState(0).standard_normal(8).astype(np.float32))
    np.testing.assert_allclose(fourier_embedding(jnp.asarray(t), 16, 16.0), peer(torch.from_numpy(t)), atol=1e-4)
