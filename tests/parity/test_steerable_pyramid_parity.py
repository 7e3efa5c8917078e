"""The steerable pyramid beside pyrtools', by the authors of the transform, which reads its filters off tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgen.nn import steerable_pyramid

pyrtools = pytest.importorskip("pyrtools")


@pytest.mark.parametrize("height,width,scales,orientations", [(64, 64, 3, 4), (64, 96, 2, 3), (32, 32, 2, 2)])
def test_coefficients_are_those_of_pyrtools(height, width, scales, orientations):
    """To the error of linear interpolation in tables of 256 and 1,024 entries."""
    image = np.random.default_rng(0).normal(size=(height, width))
    peer = pyrtools.pyramids.SteerablePyramidFreq(image, scales, orientations - 1, is_complex=True).pyr_coeffs
    with jax.enable_x64(True):
        pyramid = steerable_pyramid.build(jnp.asarray(image), scales, orientations)
    pairs = [(pyramid.high, peer["residual_highpass"]), (pyramid.low, peer["residual_lowpass"] / 4**scales)]
    for scale, bands in enumerate(pyramid.bands):  # which pyrtools does not divide by 4 with every halving
        pairs += [(band, peer[scale, k] / 4**scale) for k, band in enumerate(bands)]
    assert len(pairs) == 2 + scales * orientations
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=3e-5 * np.std(theirs))
