"""A parametric texture model by joint statistics of complex wavelet coefficients (Portilla & Simoncelli 2000).

The paper: "A Parametric Texture Model Based on Joint Statistics of Complex Wavelet Coefficients", IJCV 40(1). A picture
is cut into bands by scale and orientation; what describes its texture is how their coefficients hang together:

    marginals        moments of pixels and of lowpass images           the distribution of grey levels
    autocorrelation  of lowpass images                                 periodicity, the spectrum
    moduli           autocorrelations, covariances within a scale,     edges, corners, contours: where coefficients are
                     and with the next coarser scale                   large together
    phases           of coefficients and of the next coarser ones,     lines against edges, shading
                     whose phase is doubled

as listed in `jgen.nn.texture_statistics`, over the pyramid of `jgen.nn.steerable_pyramid`; how a sample is made to have
them is in `jgen.models.classical.texture`.

Differs from the paper: descent by L-BFGS on all statistics at once, there a projection onto each set of constraints in
turn; several crops, whose statistics are averaged; the range is a penalty; colours. Statistics are defined a little
otherwise, as `jgen.nn.texture_statistics` says.

Measured: statistics of two samples of 256x256 after 200 evaluations are off by 1.34 % on brick, off by 0.45 % on grass
and off by 0.58 % on gravel, where those of a held-out crop are off by 22.8 %, 25.0 % and 10.2 %: each after 10 steps of
`python train.py configs/classical/texture_portilla.py:brick`, configs/classical/texture_portilla.py:grass or
configs/classical/texture_portilla.py:gravel, in seconds; a sample takes about a minute on two busy CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax

from jgen.core.model import DataSpec, GenerativeModel
from jgen.models.classical.texture import Kind, Sampling, Tree, make_texture
from jgen.nn import texture_statistics
from jgen.nn.texture_statistics import Form


@dataclass(frozen=True)
class Config:
    """A texture by the statistics of its steerable pyramid."""

    scales: int = 4
    """Scales of the pyramid: sides of images are multiples of 2 to this power."""
    orientations: int = 4
    """Orientations of the pyramid."""
    neighbourhood: int = 7
    """Samples of an autocorrelation along each side, odd: M of the paper. The coarsest image must be as large."""
    sampling: Sampling = field(default_factory=Sampling)


def make(config: Config, data: DataSpec) -> GenerativeModel:
    """A texture model for images of the shape and levels of `data`.

    Raises:
      UserError: options out of range, or images that are smaller than the pyramid needs.
    """
    form = Form(config.scales, config.orientations, config.neighbourhood)
    texture_statistics.check_form(form)

    def statistics(colour: Tree, z: jax.Array, source: bool) -> Tree:
        return texture_statistics.statistics(form, z)

    def spectrum(found: Tree, height: int, width: int) -> jax.Array:
        return texture_statistics.spectrum(form, found, height, width)

    def check_size(height: int, width: int, what: str) -> None:
        texture_statistics.check_size(form, height, width, what)

    kind = Kind(statistics, texture_statistics.scales_of, spectrum, check_size)
    return make_texture("texture_portilla", data, kind, config.sampling)
