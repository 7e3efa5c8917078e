import math

import numpy as np
import pytest

from jgen.errors import UserError
from jgen.prob.schedules import KINDS, SPACINGS, make_schedule, sampling_times

FORMULAS = {  # of the lecture, one step at a time, in plain Python
    "linear": lambda t, T, b1, bT: b1 + (t - 1) / (T - 1) * (bT - b1),
    "quadratic": lambda t, T, b1, bT: (math.sqrt(b1) + (t - 1) / (T - 1) * (math.sqrt(bT) - math.sqrt(b1))) ** 2,
    "sigmoid": lambda t, T, b1, bT: b1 + (bT - b1) / (1 + math.exp(6 * (1 - 2 * (t - 1) / (T - 1)))),
}


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("T", [2, 17, 1000])
def test_betas_follow_the_lecture(kind, T):
    schedule = make_schedule(kind, T)
    expected = [FORMULAS[kind](t, T, 1e-4, 0.02) for t in range(1, T + 1)]
    np.testing.assert_allclose(schedule.beta[1:], expected, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar[1:], np.cumprod(1 - np.array(expected)), rtol=1e-12)


def test_cosine_alpha_bar_is_f_over_f0():
    T, s = 1000, 0.008

    def f(t):
        return math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2

    schedule = make_schedule("cosine", T)
    # The clipping of beta at 0.999 touches only the very last steps.
    expected = [f(t) / f(0) for t in range(T - 2)]
    np.testing.assert_allclose(schedule.alpha_bar[: T - 2], expected, rtol=1e-9)
    assert schedule.beta.max() <= 0.999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 3, 1000])
def test_any_length_is_a_schedule(kind, T):
    schedule = make_schedule(kind, T)
    assert schedule.num_steps == T and schedule.alpha_bar.dtype == np.float64
    assert schedule.beta[0] == 0 and schedule.alpha_bar[0] == 1
    assert np.all(schedule.beta[1:] > 0) and np.all(np.diff(schedule.alpha_bar) < 0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T,steps", [(1000, 50), (1000, 7), (1000, 1), (1000, 1000), (10, 9), (1, 1)])
def test_times_decrease_within_the_chain(spacing, T, steps):
    times = sampling_times(T, steps, spacing)
    assert len(times) == steps
    assert all(a > b for a, b in zip(times, times[1:]))
    assert 1 <= times[-1] and times[0] <= T
    if spacing == "trailing":
        assert times[0] == T
    elif spacing == "leading":
        assert times[-1] == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_schedule("cosin"),
        lambda: make_schedule(num_steps=0),
        lambda: make_schedule(beta_1=0.0),
        lambda: make_schedule(beta_1=0.1, beta_T=0.02),
        lambda: sampling_times(10, 11),
        lambda: sampling_times(10, 0),
        lambda: sampling_times(10, 5, "even"),
    ],
)
def test_bad_input_is_a_user_error(call):
    with pytest.raises(UserError):
        call()
