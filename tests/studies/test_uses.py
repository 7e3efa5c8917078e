"""Studies of what a generative model is for, on a mixture of Gaussians: what they count, and their mistakes."""

import json

import numpy as np
import pytest
from conftest import mistake

import train
from jgen.studies import anomaly, classification, inpainting


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mixture"
    options = ["--train.steps", "5", "--train.batch-size", "300", "--train.validate-every", "0"]
    train.command(["configs/classical/gaussian_mixture.py:tiny", "--workdir", str(folder), *options])
    return str(folder)


@pytest.mark.slow
def test_digits_are_classified_and_the_network_stands_beside(run, tmp_path):
    assert classification.command([run, "--out", str(tmp_path), "--num", "100"]) == 0
    rows = json.loads((tmp_path / "classification.json").read_text())["rows"]
    assert [row["setting"]["score"] for row in rows] == ["log_prob", "network"]
    assert all(row["images"] == 100 and row["accuracy"] > 0.8 and row["nll"] > 0 for row in rows)
    assert (tmp_path / "classification.png").is_file()
    mistake(lambda: classification.command([run, "--out", str(tmp_path), "--num", "298"]), "--num is 298", "297")
    mistake(lambda: classification.command([]), "which runs?")


def test_noise_is_told_from_digits(run, tmp_path):
    options = ["--out", str(tmp_path), "--num", "50", "--background", run]
    assert anomaly.command([run, *options, "--others", "noise"]) == 0
    (row,) = json.loads((tmp_path / "anomaly.json").read_text())["rows"]
    assert row["auroc"]["likelihood"] > 0.99 and row["auroc"]["ratio"] == 0.5  # of the same model
    assert row["images"] == [50, 50] and (tmp_path / "anomaly.png").is_file()
    assert "| 0.500 |" in anomaly.table([row])
    mistake(lambda: anomaly.command([]), "which runs?")


def test_of_probabilities_that_are_certain_the_scores_by_hand():
    log_probs = np.log(np.array([[0.9, 0.1], [0.4, 0.6]]))
    scores = classification.judge(log_probs, np.array([0, 0]))
    assert scores["accuracy"] == 0.5 and scores["confidence"] == pytest.approx(0.75)
    assert scores["nll"] == pytest.approx(-np.log(0.9 * 0.4) / 2)


def test_completions_are_measured_under_every_mask(run, tmp_path):
    assert inpainting.command([run, "--out", str(tmp_path), "--num", "10", "--draws", "2"]) == 0
    rows = json.loads((tmp_path / "inpainting.json").read_text())["rows"]
    assert [row["setting"]["mask"] for row in rows] == list(inpainting.MASKS)
    assert all(0 < row["mean_error"] < row["error"] < 0.5 for row in rows) and (tmp_path / "inpainting.png").is_file()
    mistake(lambda: inpainting.command([run, "--draws", "1"]), "--draws is 1")


def test_scores_of_completions_by_hand():
    """Two draws of two pixels, of which the first is kept: 0.2 and 0.6 where the image has 0.1."""
    made = np.array([0.0, 0.2, 0.0, 0.6]).reshape(1, 2, 1, 2, 1)
    scores = inpainting.judge(made, np.array([0.0, 0.1]).reshape(1, 1, 2, 1), np.array([[True, False]]))
    assert scores["error"] == pytest.approx(np.sqrt((0.1**2 + 0.5**2) / 2))
    assert scores["mean_error"] == pytest.approx(0.3) and scores["diversity"] == pytest.approx(0.2)
    assert scores["boundary"] == pytest.approx(0.4 / 0.1)
