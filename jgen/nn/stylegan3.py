"""Generator of StyleGAN3 (Karras et al. 2021, arXiv 2106.12423), as used in StyleGAN-XL (Sauer et al. 2022,
2202.00273).

Feature maps are samples of continuous signals on a canvas of side 1. In layer i they hold frequencies up to the cutoff
f_c[i], in cycles per side, at s[i] samples per side; filters suppress frequencies above f_t[i] = f_c[i] + f_h[i].

    input      sin(2 pi (F p + phi)) at positions p, mixed by a learned matrix; frequencies F lie in a disc of radius
               f_c[0], both are turned and moved by t = A w                            (section 3.2, appendix F)
    layer      modulated 3x3 convolution, bias -> twice the higher sampling rate -> LeakyReLU -> s[i]; the filter up
               has cutoff f_c[i - 1], that down f_c[i], so that what LeakyReLU adds above f_c[i] is not aliased
    filters    windowed sinc: h[n] = sinc(2 f_c x_n) kaiser(n), x_n in units of the side, of 6 taps per sample of the
               lower rate                                                       (section 3.2, appendix C.1)
    schedule   f_c and f_t grow geometrically from 2 and 2^2.1 to s/2 and 2^0.3 s/2; the last two layers are critically
               sampled, at f_c = s/2; s[i] is the next power of two above 2 f_t[i], at most the canvas's
    growth     a later stage cuts off the critically sampled layers of the one before and adds layers of its own, which
               alone are trained, up to twice the size                                 (2202.00273, section 3.2)
    margin     maps extend beyond the image, so that borders leak no absolute positions

Filtering along an axis is a product with a matrix. For sizes of up to hundreds of pixels this takes no more time than
applying the filter, and its derivatives of any order are products, too. An image whose sides are not powers of two is
the middle of a canvas of the next power of two.

Differs from the papers: the magnitudes of inputs are not tracked (StyleGAN-XL's code does not update them either);
values are not clamped at 256, which is for half precision; there are no radially symmetric filters (configuration R).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jgen.core.model import ImageSpec
from jgen.nn.resampling import nearest
from jgen.nn.stylegan2 import EqualisedDense, Mapping, activate, modulated_conv

CRITICAL = 2  # layers at the end of a stage that are critically sampled
TAPS = 6  # of a filter, for each sample of the lower rate
FIRST_CUTOFF, FIRST_STOPBAND, LAST_STOPBAND = 2.0, 2.0**2.1, 2.0**0.3  # the last in units of the last cutoff
OUTPUT_SCALE = 0.25  # of the image


class Band(NamedTuple):
    """The band of a feature map: `cutoff` f_c and `half_width` f_h in cycles per side of the canvas, at `rate` samples
    per side; height and width of the map, whose middle is the canvas."""

    cutoff: float
    half_width: float
    rate: int
    height: int
    width: int
    channels: int


class LayerSpec(NamedTuple):
    """The layer of that name maps one band to another; the last layer of a network gives an image, unfiltered."""

    name: str
    before: Band
    after: Band
    to_image: bool


def lowpass(taps: int, cutoff: float, width: float, rate: float) -> np.ndarray:
    """Taps of a low-pass filter, float64 (taps,), of sum 1: a sinc under a Kaiser window.

    Args:
      cutoff: where the signal is halved; width: of the transition from passband to stopband, around the cutoff; rate:
        samples per unit of length. All in the same unit of frequency.
    """
    # Kaiser's formulas of the attenuation in decibels, and of the window's beta from it (Kaiser 1974).
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    h = np.sinc(2 * cutoff * x) * np.kaiser(taps, beta)
    return h / h.sum()


@lru_cache(maxsize=256)
def resampling(before: Band, after: Band, size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of one axis: up (m, size), to twice the higher sampling rate, and down (out, m), to that of `after`.

    Args:
      size, out: numbers of samples of the input and of the output, which have the same centre.
    """
    rate = 2 * max(before.rate, after.rate)
    up, down = rate // before.rate, rate // after.rate
    up_filter = up * lowpass(TAPS * up, before.cutoff, 2 * before.half_width, rate)
    down_filter = lowpass(TAPS * down, after.cutoff, 2 * after.half_width, rate)
    padding = (out - 1) * down + 1 - size * up + len(up_filter) + len(down_filter) - 2
    first = (padding + up) // 2  # samples are the middles of pixels: appendix C.3
    middle = size * up + padding - len(up_filter) + 1

    def banded(taps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Element (r, c) is the tap of number columns[c] - rows[r], zero where there is none."""
        number = columns[None, :] - rows[:, None]
        return np.where((number >= 0) & (number < len(taps)), taps[np.clip(number, 0, len(taps) - 1)], 0.0)

    upwards = banded(up_filter, np.arange(middle), first + up * np.arange(size))
    return upwards, banded(down_filter, down * np.arange(out), np.arange(middle))


def filtered_activation(x: jax.Array, before: Band, after: Band) -> jax.Array:
    """LeakyReLU, times sqrt 2, of the continuous signal of x (B, h, w, C), as (B, H, W, C) of the band `after`."""
    (up_y, down_y), (up_x, down_x) = (
        [jnp.asarray(matrix, x.dtype) for matrix in resampling(before, after, size, out)]
        for size, out in ((x.shape[1], after.height), (x.shape[2], after.width))
    )
    x = activate(jnp.einsum("ph,bhwc,qw->bpqc", up_y, x, up_x))
    return jnp.einsum("hp,bpqc,wq->bhwc", down_y, x, down_x)


def stage(
    side: int, height: int, width: int, layers: int, widest: int, budget: int, margin: int, before: Band | None
) -> list[Band]:
    """Bands of the layers 0 .. `layers` of a stage, the last of which makes the image: appendix D.

    Args:
      side: samples per side of the canvas, a power of two; height, width: of the image.
      layers: of the stage, without that to the image; more than `CRITICAL`.
      widest: upper limit on the number of channels, else budget / (2 f_c); margin: samples beyond the canvas.
      before: the band that the stage begins with, if it follows another.
    """
    low, stop = (FIRST_CUTOFF, FIRST_STOPBAND) if before is None else before[:2]
    stop = stop if before is None else low + stop
    bands = []
    for number in range(layers + 1):
        part = min(number / (layers - CRITICAL), 1.0)
        cutoff = low * (side / 2 / low) ** part
        stopband = stop * (side / 2 * LAST_STOPBAND / stop) ** part
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, side)))
        half_width = max(stopband, rate / 2) - cutoff
        cropped, around = number >= layers - 1, rate + 2 * margin
        rows, columns = (height, width) if cropped else (around, around)
        bands.append(Band(cutoff, half_width, rate, rows, columns, round(min(budget / 2 / cutoff, widest))))
    return bands if before is None else [before, *bands[1:]]


def schedule(
    images: ImageSpec, stages: tuple[int, ...], widest: int, budget: int, margin: int
) -> tuple[tuple[LayerSpec, ...], ...]:
    """The layers of the network of each stage, from the input on: see `stage`.

    Args:
      stages: layers of each stage. The last makes images of the size of `images`, each earlier one of half the next
      one's.
    """
    networks: list[tuple[LayerSpec, ...]] = []
    full = 2 ** math.ceil(math.log2(max(images.height, images.width)))
    stem: list[LayerSpec] = []
    for number, layers in enumerate(stages):
        shift = len(stages) - 1 - number
        size = (images.height >> shift, images.width >> shift)
        begin = stem[-1].after if stem else None
        bands = stage(full >> shift, *size, layers, widest, budget, margin, begin)
        bands[-1] = bands[-1]._replace(channels=images.channels)
        own = [
            LayerSpec(f"stage{number}_layer{i}", bands[max(i - 1, 0)], bands[i], i == layers) for i in range(layers + 1)
        ]
        networks.append((*stem, *own))
        stem += own[: layers - CRITICAL]
    return tuple(networks)


class FourierInput(nn.Module):
    """(w (B, E)) to the samples of a band's sines, (B, H, W, C), mixed by a learned matrix.

    Frequencies and phases are constants, drawn at initialisation and stored in the collection "batch_stats".
    """

    band: Band
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, w: jax.Array) -> jax.Array:
        channels, rate = self.band.channels, self.band.rate
        frequencies = self.variable("batch_stats", "frequencies", self.draw_frequencies).value
        phases = self.variable("batch_stats", "phases", self.draw_phases).value
        kernel = self.param("kernel", nn.initializers.normal(1.0), (channels, channels), jnp.float32)
        # (cosine and sine of an angle, shift in x, shift in y); the angle is 0 and the shift none at the start.
        affine = self.param("affine", nn.initializers.zeros, (w.shape[-1], 4), jnp.float32)
        bias = self.param("bias", lambda key: jnp.array([1.0, 0.0, 0.0, 0.0]))
        t = w @ (affine * w.shape[-1] ** -0.5) + bias[None]
        t = t / jnp.sqrt(jnp.sum(t[:, :2] ** 2, axis=1, keepdims=True) + 1e-12)
        cos, sin = t[:, :1], t[:, 1:2]
        fx, fy = frequencies[None, :, 0], frequencies[None, :, 1]
        turned_x, turned_y = cos * fx + sin * fy, -sin * fx + cos * fy  # F R
        phases = phases[None] - turned_x * t[:, 2:3] - turned_y * t[:, 3:4]
        y, x = ((jnp.arange(n) + 0.5 - n / 2) / rate for n in (self.band.height, self.band.width))
        along_y = turned_y[:, None, None, :] * y[None, :, None, None]
        along_x = turned_x[:, None, None, :] * x[None, None, :, None]
        waves = jnp.sin(2 * jnp.pi * (along_y + along_x + phases[:, None, None, :]))
        return (waves @ (kernel * channels**-0.5)).astype(self.dtype)

    def draw_frequencies(self) -> jax.Array:
        """(C, 2) in (x, y): directions are uniform, and lengths from 0 to the cutoff, as those of the authors' code."""
        f = jax.random.normal(self.make_rng("params"), (self.band.channels, 2))
        radius = jnp.sqrt(jnp.sum(f**2, axis=1, keepdims=True))
        return self.band.cutoff * f / (radius * jnp.exp(0.25 * radius**2))

    def draw_phases(self) -> jax.Array:
        return jax.random.uniform(self.make_rng("params"), (self.band.channels,), minval=-0.5, maxval=0.5)


class FilteredLayer(nn.Module):
    """Modulated convolution, bias and filtered LeakyReLU; to an image, only a 1x1 convolution and a bias."""

    spec: LayerSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """x (B, h, w, C) of the band before, w (B, E), to (B, H, W, channels) of that after."""
        size = 1 if self.spec.to_image else 3
        styles = EqualisedDense(x.shape[-1], bias=1.0, name="style")(w)
        shape = (size, size, x.shape[-1], self.spec.after.channels)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)[None, None, None, :]
        if self.spec.to_image:
            y = modulated_conv(x.astype(self.dtype), kernel, styles * x.shape[-1] ** -0.5, False)
            return y.astype(jnp.float32) + bias
        # The full output with zeros around the map: the filters use the part that they need.
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = modulated_conv(x, kernel, styles, True) + bias.astype(self.dtype)
        return filtered_activation(y, self.spec.before, self.spec.after)


class Synthesis(nn.Module):
    """w (B, E) to images in about [-1, 1], float32 (B, h, w, C), of the size of a stage.

    networks: see `schedule`; level: which of them. Its layers from earlier stages are not trained.
    """

    networks: tuple[tuple[LayerSpec, ...], ...]
    level: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, w: jax.Array) -> jax.Array:
        # The parameters of all stages exist from the start.
        levels = range(len(self.networks)) if self.is_initializing() else (self.level,)
        specs = {spec.name: spec for level in levels for spec in self.networks[level]}
        layers = {name: FilteredLayer(spec, self.dtype, name=name) for name, spec in specs.items()}
        first = FourierInput(self.networks[0][0].before, self.dtype, name="input")(w)

        def run(level: int) -> jax.Array:
            x, own = first, f"stage{level}_layer0"
            for spec in self.networks[level]:
                x = jax.lax.stop_gradient(x) if level > 0 and spec.name == own else x
                x = layers[spec.name](x, w)
            return OUTPUT_SCALE * x

        return {level: run(level) for level in levels}[self.level]


class Generator(nn.Module):
    """(z (B, latent), one_hot (B, classes) or None, train) to images in about [-1, 1], float32 (B, h, w, C).

    networks, level: of `Synthesis`; the mapping, too, is trained in the first stage only.
    width: of w; mapping_layers: of the mapping; doublings: by repetition of pixels, of an image of an early stage.
    The collection "batch_stats" has the moving average of w of each class, (classes, width).
    """

    networks: tuple[tuple[LayerSpec, ...], ...]
    level: int
    width: int
    mapping_layers: int
    classes: int
    doublings: int = 0
    mean_decay: float = 0.998
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.mapping = Mapping(self.width, self.mapping_layers)
        self.synthesis = Synthesis(self.networks, self.level, self.dtype)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (max(self.classes, 1), self.width))

    def __call__(self, z: jax.Array, one_hot: jax.Array | None, train: bool = True) -> jax.Array:
        w = self.mapping(z, one_hot)
        if train and not self.is_initializing():
            self.update_mean(jax.lax.stop_gradient(w), one_hot)
        return self.enlarged(self.synthesis(jax.lax.stop_gradient(w) if self.level > 0 else w))

    def update_mean(self, w: jax.Array, one_hot: jax.Array | None) -> None:
        """Updates each class's average with its examples, as a mean over examples, so that they may be split over
        devices."""
        number = self.mean.value.shape[0]
        belongs = jnp.ones((len(w), 1)) if one_hot is None else one_hot
        difference = belongs.T @ w - jnp.sum(belongs, axis=0)[:, None] * self.mean.value
        self.mean.value = self.mean.value + (1.0 - self.mean_decay) * number / len(w) * difference

    def truncated(self, z: jax.Array, one_hot: jax.Array | None, psi: float | jax.Array) -> jax.Array:
        """Images of w moved towards the average of its class: w_mean + psi (w - w_mean)."""
        mean = self.mean.value[:1] if one_hot is None else one_hot @ self.mean.value
        return self.enlarged(self.synthesis(mean + psi * (self.mapping(z, one_hot) - mean)))

    def enlarged(self, x: jax.Array) -> jax.Array:
        for _ in range(self.doublings):
            x = nearest(x)
        return x
