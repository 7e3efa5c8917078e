"""Score models: the times that the likelihood's weight asks for, and the score of data that is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import data_of
from stub_network import CTX, PARAMS, column, gaussian_images, keys_of, stub_network

from jgen.models.diffusion import score_sde
from jgen.nn import unet
from jgen.prob.process import half_log_snr

DATA = data_of(2, 2, 1, 256, 3)
MEAN, STD = 0.1, 0.3


@pytest.fixture
def network(monkeypatch):
    return stub_network(monkeypatch)


def gaussian_noise(process):
    """E[eps | x_t] of data N(MEAN, STD^2), as the network is asked for it."""

    def answer(scaled, t, label):
        t = column(t, scaled) / score_sde.TIME_SCALE
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = scaled * jnp.sqrt(alpha**2 + sigma**2)
        return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("process", ["vp", "sub_vp", "ve"])
def test_samples_and_likelihoods_of_gaussian_data(network, process):
    config = score_sde.Config(network=unet.TINY, process=process, sigma_max=10.0)
    model = score_sde.make(config, DATA)
    made = score_sde.process_of(config)
    network.answer = gaussian_noise(made)
    n = 500
    cond = {"label": np.zeros(n, np.int32)}
    options = {"sampler": "heun", "steps": 40, "spacing": "log_snr", "low": 0.01, "clip": False}
    sample = jax.jit(partial(model.sample, **options))
    x = np.asarray(sample(PARAMS, CTX, keys_of(n), cond), np.float64) / 127.5 - 1
    assert abs(x.mean() - MEAN) < 5 * STD / np.sqrt(4 * n) + 0.005
    assert x.std() == pytest.approx(STD, rel=5 * np.sqrt(0.5 / (4 * n)) + 0.02)
    images, _ = gaussian_images(32, DATA.image, MEAN, STD)
    cond = {"label": np.zeros(32, np.int32)}
    log_p = np.asarray(
        model.log_prob(PARAMS, CTX, keys_of(32), images, cond, tolerance=1e-5, probes=0, low=0.011), np.float64
    )
    edges = (np.arange(257) - 0.5) / 127.5 - 1
    exact = np.log(np.diff(scipy.stats.norm(MEAN, STD).cdf(edges)))[images].sum((1, 2, 3))
    # Dequantised images are taken to have noise 0.011 already, and the levels' width blurs: thousandths of a pixel.
    assert abs(np.mean(log_p - exact)) < 0.05


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_likelihoods_weight_is_in_the_times(network, process):
    """They have the density g^2 / sigma^2: lambda, half the log signal-to-noise ratio, is uniform."""
    config = score_sde.Config(network=unet.TINY, process=process, weighting="likelihood")
    system = score_sde.make(config, DATA).phases[0].loss.args[0]
    t = np.asarray(jax.jit(lambda k: score_sde.training_times(system, k))(keys_of(3000)), np.float64)
    value = half_log_snr(system.process, t)
    first, last = half_log_snr(system.process, np.array([score_sde.SHORTEST, 1.0]))
    assert scipy.stats.kstest((value - first) / (last - first), "uniform").pvalue > 1e-3
