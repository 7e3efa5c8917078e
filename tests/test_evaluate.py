"""`python -m jgen.evaluate`: the score is that of the API, and its protocol stands beside it."""

import json

import jax
import numpy as np
import pytest

import jgen
from jgen import evaluate
from jgen.data import dataset
from jgen.errors import UserError

TRAIN = ["train.py", "configs/diffusion/ddpm.py:tiny", "--train.steps", "3", "--train.sample-every", "0"]


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    import subprocess
    import sys

    from conftest import ROOT

    folder = tmp_path_factory.mktemp("evaluate") / "run"
    subprocess.run([sys.executable, *TRAIN, "--workdir", str(folder)], cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_score_and_its_protocol(run, python):
    done = python("-m", "jgen.evaluate", run, "--num", "20", "--samples", "60", "--batch-size", "60")
    whole = json.loads((run / "evaluation.json").read_text())
    document, labels = whole["likelihood"], whole["labels"]
    gen = jgen.load(run)
    batch = dataset.load(gen.config.data).splits["test"].fetch(np.arange(20))
    key = jax.random.split(jax.random.key(0))[1]
    nats = gen.log_prob(key, batch["image"], label=batch["label"])
    assert document["nats"]["mean"] == pytest.approx(nats.mean(), rel=1e-5)
    assert document["bits_per_dim"]["mean"] == pytest.approx(-nats.mean() / (64 * np.log(2)), rel=1e-5)
    assert document["nats"]["standard_error"] == pytest.approx(nats.std() / np.sqrt(20), rel=1e-4)
    assert document["protocol"] == {"split": "test", "num": 20, "binarise": "none", "levels": 256, "seed": 0}
    assert document["kind"] == "lower_bound" and whole["step"] == 3 and whole["ema"] is True
    assert [line["step"] for line in whole["validation"]] == [3] and "train.py" in whole["training"]["command"]
    assert 0 <= labels["accuracy"] <= 0.6 and labels["num"] == 60  # of a model that has learned nothing
    assert labels["classifier_test_accuracy"] > 0.95
    found = whole["quality"]
    assert found["network"] == f"FD-{labels['classifier']}" == "FD-digits-ad971574"  # of configs/classifiers
    assert found["num"] == 60
    assert found["real"] == {"split": "test", "num": 20}
    assert f"classifier {labels['classifier']}" in done.stdout
    assert "bits/dim" in done.stdout and "lower bound" in done.stdout and "num 20" in done.stdout


def test_images_of_another_program(run, python, tmp_path):
    """Those of this program, given as a file, have the same distances."""
    python("sample.py", run, "--num", "60", "--out", tmp_path / "x.npz", "--batch-size", "60")
    arguments = ["--images", tmp_path / "x.npz", "--data.name", "digits", "--num", "20"]
    python("-m", "jgen.evaluate", *arguments, "--out", tmp_path / "x.json")
    few = ["--num", "20", "--likelihood-images", "5", "--samples", "60"]
    python("-m", "jgen.evaluate", run, *few, "--out", tmp_path / "y.json")
    of_file, of_run = (json.loads((tmp_path / name).read_text()) for name in ("x.json", "y.json"))
    assert of_file["labels"] == of_run["labels"] and of_run["likelihood"]["protocol"]["num"] == 5
    assert of_file["quality"]["frechet_distance"]["value"] == pytest.approx(
        of_run["quality"]["frechet_distance"]["value"], rel=1e-3
    )


@pytest.mark.parametrize(
    "args,words",
    [
        ([], ["which run"]),
        (["nowhere"], ["no run at nowhere"]),
        (["RUN", "--num", "100000"], ["--num is 100000", "test has"]),
        (["RUN", "--num", "20", "--likelihood-images", "21"], ["--likelihood-images is 21", "20 images"]),
        (["RUN", "--split", "dev"], ["--split"]),
        (["RUN", "RUN", "--out", "x.json"], ["one run"]),
        (["RUN", "--nothing"], ["--nothing"]),
        (["RUN", "--samples", "20"], ["20 images", "at least 50"]),
        (["RUN", "--images", "x.npz"], ["instead of runs"]),
        (["--images", "x.npz"], ["--out"]),
        (["RUN", "--inception", "nowhere.pth"], ["no file nowhere.pth"]),
    ],
)
def test_mistakes_are_one_line(run, args, words):
    with pytest.raises(UserError) as caught:
        evaluate.command([str(run) if a == "RUN" else a for a in args])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
