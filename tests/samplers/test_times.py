"""Times of sampling: each spacing by its own formula."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake
from gaussians import PROCESSES

from jgen.prob.process import Process, half_log_snr
from jgen.prob.schedules import SPACINGS, sampling_times
from jgen.samplers.times import CONTINUOUS_SPACINGS, check_times, make_times


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("spacing", CONTINUOUS_SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 9, 100])
def test_times_decrease_from_one_to_above_zero(name, spacing, steps):
    times = make_times(PROCESSES[name], spacing, steps, shift=3.0, low=0.01)
    assert times.shape == (steps,) and times.dtype == np.float64
    np.testing.assert_array_equal(check_times(times), times)
    assert times[0] == 1


def test_uniform_and_shifted_times():
    process = PROCESSES["linear"]
    np.testing.assert_allclose(make_times(process, "uniform", 4), [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(make_times(process, "shifted", 4, shift=1.0), [1, 0.75, 0.5, 0.25])
    shifted = make_times(process, "shifted", 4, shift=3.0)
    # Esser et al. 2024, section 5.3.2: of linear interpolation, sigma / alpha is multiplied by the shift.
    np.testing.assert_allclose(shifted[1:] / (1 - shifted[1:]), [9, 3, 1])


@pytest.mark.parametrize("name", PROCESSES)
def test_times_by_noise_are_even_in_its_logarithm_or_its_root(name):
    process, low = PROCESSES[name], 0.02
    ends = []
    for spacing, of_noise in {"log_snr": np.log, "karras": lambda ratio: ratio ** (1 / 7)}.items():
        times = make_times(process, spacing, 20, low=low)
        first = 1 if process.alpha(times[:1]) < 1e-7 else 0  # where the first is noise alone, the second begins
        ratio = np.exp(-half_log_snr(process, times))
        gaps = np.diff(of_noise(ratio[first:]))
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-6)
        ends.append(ratio[-1])
    left = process.sigma(np.array(1e-12)) / process.alpha(np.array(1e-12))
    np.testing.assert_allclose(ends, max(low, left), rtol=1e-6)  # some noise may stay at t = 0


def test_karras_times_are_those_of_the_paper():
    """Equation 5 of Karras et al. 2022, with sigma_min = 0.002 and sigma_max = 80."""
    n, i = 18, np.arange(18)
    sigma = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(80 * make_times(PROCESSES["edm"], "karras", n, low=0.002), sigma, rtol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_of_a_chain_are_points_of_it(spacing):
    times = make_times(PROCESSES["discrete"], spacing, 30, num_timesteps=1000)
    np.testing.assert_allclose(1000 * times, sampling_times(1000, 30, spacing), rtol=1e-12)


def test_times_of_a_learned_process_are_of_the_device():
    """A process whose functions answer in JAX's arrays, as one with parameters does."""
    fixed = PROCESSES["log_snr"]
    learned = Process(*(lambda t, f=f: f(jnp.asarray(t, jnp.float32)) for f in fixed))
    for spacing in ("log_snr", "karras"):
        times = make_times(learned, spacing, 10, low=0.05)
        assert isinstance(times, jnp.ndarray)
        np.testing.assert_allclose(times, make_times(fixed, spacing, 10, low=0.05), atol=1e-5)


def test_what_are_no_times():
    process = PROCESSES["vp"]
    mistake(lambda: make_times(process, "even", 4), "spacing is 'even'", "karras")
    mistake(lambda: make_times(process, "trailing", 4), "spacing is 'trailing'", "one of uniform, shifted")
    mistake(lambda: make_times(process, "uniform", 0), "steps is 0")
    mistake(lambda: make_times(process, "trailing", 11, num_timesteps=10), "steps is 11", "1 to 10")
    mistake(lambda: make_times(process, "shifted", 4, shift=0.0), "shift is 0.0")
    mistake(lambda: make_times(process, "karras", 4, low=0.0), "low is 0.0")
    for times in ((), (0.5, 0.5), (0.2, 0.5), (1.1, 0.5), (0.5, 0.0), (float("nan"),), ((0.5, 0.1), (0.5, 0.1))):
        mistake(lambda times=times: check_times(times), "times are ", "decrease strictly")
