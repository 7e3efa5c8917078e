"""PixelRNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv 1601.06759): Row LSTM and Diagonal BiLSTM.

    model     p(x) = prod_i p(x_i | x_1, ..., x_{i-1}), pixels row by row                (equation 1)
              p(x_i | x_<i) = p(R | x_<i) p(G | R, x_<i) p(B | R, G, x_<i)               (equation 2)
              each a softmax over the levels                                             (section 2.2)
    layer     o, f, i, g = K_ss * h_before + K_is * x                                    (equation 3)
              c = sigmoid(f) c_before + sigmoid(i) tanh(g),   h = sigmoid(o) tanh(c)
      row       before: the row above, K_ss over k columns, K_is over k, masked          (section 3.1)
      diagonal  before: to the left (c, h) and above (h); plus the mirror image of that,
                shifted down by one row                                                  (section 3.2)
    block     x + W h, h half as wide as x                                               (figure 5)
    loss      -log p(x), a mean over images and dimensions; log_prob is exact
    sampling  x_i ~ softmax(logits_i / temperature), one after another

Glossary: x an image, or a layer's input; x_<i the pixels above and to the left; h, c hidden and cell states; o, f, i, g
output, forget and input gates and the content. The Row LSTM sees a triangle above the pixel, the Diagonal BiLSTM all
pixels before it.

Differs from the paper: the class may add a bias to the gates of every layer, and dropout is an option. The
right-to-left direction, shifted down, sees whole pixels only: it has no mask over channels, and also takes the image as
input; without it a pixel would not see the last pixel of the row above beyond the reach of the first layer. There are
no skip connections from the layers to the output and no multi-scale model. Sampling caches the states: to draw one
channel of a pixel, the network is evaluated at that pixel only, and the right-to-left direction once per row.

Measured: 1.696 bits/dim on the 8x8 digits in 17 levels, given the class, 2,000 steps of
`python train.py configs/autoregressive/pixelrnn.py:digits`, which has Row LSTMs; with two Diagonal BiLSTMs and a
dropout of 0.3, which takes as long, 1.724.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp

from jgen.core.model import DataSpec, GenerativeModel
from jgen.models.autoregressive.raster import check_raster, make_pixelcnn_model
from jgen.nn.pixelrnn import PixelRNN
from jgen.samplers.truncation import Sampling


@dataclass(frozen=True)
class Config:
    """PixelRNN: residual blocks of two-dimensional LSTMs."""

    layer: Literal["row", "diagonal"] = "diagonal"
    """Row LSTM, over whole rows, or Diagonal BiLSTM, over diagonals from both sides."""
    features: int = 128
    """Width h of the states, half of the width between blocks; a multiple of the images' channels."""
    blocks: int = 12
    """LSTM layers after the first layer."""
    first_kernel: int = 7
    """Size n of the first layer's masked n x n convolution; odd."""
    kernel: int = 3
    """Columns of the Row LSTM's convolutions; odd. The Diagonal BiLSTM has none."""
    hidden: int = 256
    """Width of the output's middle layer; a multiple of the images' channels."""
    dropout: float = 0.0
    """Dropout rate of the LSTM layers' outputs."""
    class_conditional: bool = False
    """Condition on the class label (not in the paper)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's computation; parameters, cell states, logits and losses stay float32."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A PixelRNN for the image shape, levels and classes of `data`.

    Raises:
      UserError: sizes that the network cannot be built with, or options out of their range.
    """
    check_raster(config, data)
    network = PixelRNN(
        levels=data.image.levels,
        channels=data.image.channels,
        layer=config.layer,
        features=config.features,
        blocks=config.blocks,
        hidden=config.hidden,
        first_size=config.first_kernel,
        size=config.kernel,
        num_classes=data.num_classes if config.class_conditional else 0,
        dropout_rate=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )
    return make_pixelcnn_model("pixelrnn", network, config, data)
