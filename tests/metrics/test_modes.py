"""Counting modes: by hand, and against what is known of Gaussians."""

import numpy as np
import pytest
from conftest import mistake

from jgen.metrics.modes import NONE, mode_scores, nearest_modes


def test_a_point_has_the_mode_within_three_standard_deviations():
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    points = np.array([[0.1, 0.0], [0.75, 0.1], [0.0, 1.71], [0.0, 1.69], [0.5, 0.0], [5.0, 5.0]])
    assert nearest_modes(points, centres, 0.1).tolist() == [0, 1, 2, NONE, NONE, NONE]
    assert nearest_modes(points, centres, 0.1, within=6.0).tolist()[:5] == [0, 1, 2, 2, 0]
    # In the plane, exp(-4.5) of a Gaussian lies farther from its centre: 1.1 %, to four standard errors of 20,000.
    draws = centres[1] + 0.1 * np.random.default_rng(0).standard_normal((20_000, 2))
    far = np.mean(nearest_modes(draws, centres, 0.1) == NONE)
    assert far == pytest.approx(np.exp(-4.5), abs=4 * np.sqrt(np.exp(-4.5) / 20_000))


def test_scores_by_hand():
    scores = mode_scores(np.array([0, 0, 2, NONE, 2, 0, NONE, 0]), 4)
    assert scores["modes"] == 2 and scores["quality"] == 6 / 8
    assert scores["kl"] == pytest.approx(4 / 6 * np.log(4 / 6 * 4) + 2 / 6 * np.log(2 / 6 * 4))
    even = mode_scores(np.arange(12) % 4, 4)
    assert (even["modes"], even["quality"]) == (4, 1.0) and even["kl"] == pytest.approx(0, abs=1e-12)
    assert mode_scores(np.full(5, 3), 4)["kl"] == pytest.approx(np.log(4))
    assert mode_scores(np.full(5, NONE), 4) == {"modes": 0, "quality": 0.0, "kl": None}


def test_what_has_no_modes():
    mistake(lambda: mode_scores(np.zeros(0, int), 4), "there are no samples")
    mistake(lambda: mode_scores(np.array([0, 4]), 4), "modes are 0 to 4: there are 4")
    mistake(lambda: nearest_modes(np.zeros((1, 2)), np.zeros((1, 2)), 0.0), "std is 0.0")
