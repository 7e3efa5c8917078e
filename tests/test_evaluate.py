"""`python -m jgen.evaluate`: the score is that of the API, and its protocol stands beside it."""

import gc
import json
import re
import shutil
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from conftest import real_images
from PIL import Image

import jgen
import sample
from jgen import evaluate, held_out, sample_scores
from jgen.compare import rows
from jgen.core import keys as rng
from jgen.core.model import ArraySpec, DataSpec, GenerativeModel, ImageSpec
from jgen.data import dataset
from jgen.data.config import Config as Data
from jgen.errors import UserError
from jgen.metrics import quality
from jgen.metrics.table import table
from jgen.train import checkpoints

FILE = ["--images", "x.npz", "--out", "x.json"]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluate") / "run")


def test_the_score_and_its_protocol(run, capsys):
    picture = str(run / "grid.png")
    assert evaluate.command([str(run), "--num", "20", "--samples", "60", "--batch-size", "60", "--grid", picture]) == 0
    with Image.open(picture) as grid:
        assert grid.size == (6 * 50 + 2, 10 * 50 + 2)  # a row a class of six, 8x8 enlarged six times, gaps of 2
    whole = json.loads((run / "evaluation.json").read_text())
    document, labels = whole["likelihood"], whole["labels"]
    gen = jgen.load(run)
    image, label = real_images(gen.config.data, 20)
    nats = gen.log_prob(rng.stream(rng.seed_key(0), rng.SCORE), image, label=label)
    assert document["nats"]["mean"] == pytest.approx(nats.mean(), rel=1e-5)
    assert document["bits_per_dim"]["mean"] == pytest.approx(-nats.mean() / (64 * np.log(2)), rel=1e-5)
    assert document["nats"]["standard_error"] == pytest.approx(nats.std(ddof=1) / np.sqrt(20), rel=1e-4)
    protocol = {"split": "test", "num": 20, "binarise": "none", "levels": 17, "given": "class", "seed": 0}
    assert document["protocol"] == protocol and whole["sampling"]["options"]["steps"] == 5
    assert document["kind"] == "lower_bound" and whole["step"] == 4 and whole["ema"] is True
    assert whole["trained"] == {"steps": 4, "minutes": whole["training_minutes"]}
    assert [line["step"] for line in whole["validation"]] == [4] and "train.py" in whole["training"]["command"]
    assert 0 <= labels["accuracy"] <= 0.6 and labels["num"] == 60  # of a model that has learned nothing
    assert labels["classifier_test_accuracy"] > 0.95
    scores = whole["quality"]
    assert scores["network"] == f"FD-{labels['classifier']}" == "FD-digits-ad971574"  # of configs/classifiers
    assert scores["num"] == 60
    assert scores["real"] == {"split": "test", "num": 20}
    assert whole["data_fingerprint"] == dataset.load(gen.config.data).fingerprint
    head, line, more_head, more, protocol, path = capsys.readouterr().out.splitlines()
    assert path == str(run / "evaluation.json")
    cells = dict(zip(re.split("  +", head), re.split("  +", line)))
    distance, kernel = scores["frechet_distance"], scores["kernel_distance"]
    assert cells == {
        "run": str(run),
        "system": "ddpm",
        "data": "digits",
        "step": "4",
        "bits/dim": f"{document['bits_per_dim']['mean']:.4f}",
        "log p(x), nats": f"{document['nats']['mean']:.3f} ± {document['nats']['standard_error']:.3f}",
        "likelihood": "bound, N 20",
        "FD": f"{distance['value']:.3f} ({distance['low']:.3f} to {distance['high']:.3f})",
        "kernel distance": f"{kernel['value']:.5f} ± {kernel['standard_error']:.5f}",
        "precision": f"{scores['precision']['value']:.3f}",
        "recall": f"{scores['recall']['value']:.3f}",
        "class accuracy": f"{labels['accuracy']:.4f} of 60",
    }
    assert all(head.index(name) == line.index(cells[name]) for name in ("log p(x), nats", "likelihood", "FD"))
    assert dict(zip(re.split("  +", more_head), re.split("  +", more))) == {
        "run": str(run),
        "spatial FD": f"{scores['spatial_frechet_distance']['value']:.3f}",
        "classifier's score": f"{scores['classifier_score']['value']:.3f} ± {scores['classifier_score']['spread']:.3f}",
        "density": f"{scores['density']['value']:.3f}",
        "coverage": f"{scores['coverage']['value']:.3f}",
        "memorisation": f"{100 * scores['memorisation']['value']:.1f} %",
        "class balance": f"{labels['balance']:.4f}",
    }
    assert f"data digits, hash {whole['data_fingerprint'][:12]}" in protocol
    assert "split test, num 20, binarise none, levels 17, given class, seed 0" in protocol
    assert f"FD-digits-ad971574, weights {scores['network_hash']}, 60 samples to 20 test images" in protocol
    assert "precision and recall of 20 of each" in protocol
    assert f"classifier {labels['classifier']}" in protocol
    assert scores["kernel_distance"]["num"] == 60 and scores["kernel_distance"]["real_num"] == 20
    # A comparison reads what is written here.
    read, summary = rows.scores_of(whole), rows.seed_line(whole)
    assert read["distance"] == distance["value"] and read["bits_per_dim"] == document["bits_per_dim"]["mean"]
    assert f"FD {distance['value']:.2f} ({distance['low']:.2f} to " in summary and summary.count(" to ") == 5
    options = whole["sampling"]["options"]
    assert rows.describe_sampling(options, gen.model.sampling) == "5 steps of ddim" and set(rows.KEPT) <= set(whole)


@pytest.mark.slow
def test_images_of_another_program(run, tmp_path, monkeypatch):
    """Those of this program, given as a file, have the same distances; of what is given, classes are not by request."""
    classes, real = [], quality.quality
    monkeypatch.setattr(quality, "quality", lambda *args: (classes.append(args[6]), real(*args))[1])
    sample.command([str(run), "--num", "60", "--out", str(tmp_path / "x.npz"), "--steps", "3"])
    arguments = ["--images", str(tmp_path / "x.npz"), "--data.name", "digits", "--num", "20"]
    evaluate.command([*arguments, "--out", str(tmp_path / "x.json")])
    few = ["--num", "20", "--likelihood-images", "5", "--samples", "60", "--sampling.steps", "3"]
    evaluate.command([str(run), *few, "--out", str(tmp_path / "y.json")])
    of_file, of_run = (json.loads((tmp_path / name).read_text()) for name in ("x.json", "y.json"))
    assert classes[0] is None and classes[1].tolist() == [i % 10 for i in range(60)]
    assert of_file["labels"] == of_run["labels"] and of_run["likelihood"]["protocol"]["num"] == 5
    assert of_run["sampling"]["options"]["steps"] == 3 and of_run["sampling"]["options"]["sampler"] == "ddim"
    assert of_file["quality"]["frechet_distance"]["value"] == pytest.approx(
        of_run["quality"]["frechet_distance"]["value"], rel=1e-3
    )


def outcome(**changes):
    document = {"run": "a", "system": "vae", "data": "digits", "data_fingerprint": "0123456789abcdef", "step": 7}
    protocol = {"split": "test", "num": 9, "binarise": "none", "levels": 256, "dequantisation": "uniform"}
    likelihood = {"kind": "exact", "nats": {"mean": -1.0, "standard_error": 0.5}, "bits_per_dim": {"mean": 2.0}}
    return {**document, "likelihood": {**likelihood, "protocol": {**protocol, "samples": 5}}, **changes}


def test_a_row_a_run_and_a_line_a_protocol():
    documents = [outcome(), outcome(run="runs/b", system="dcgan", likelihood=None), outcome(run="c")]
    head, *rows, first, second = table(documents).splitlines()
    assert head.split()[:4] == ["run", "system", "data", "step"]
    assert [row.split()[:2] for row in rows] == [["a", "vae"], ["runs/b", "dcgan"], ["c", "vae"]]
    assert rows[0].index("exact, N 9") == rows[2].index("exact, N 9") == head.index("likelihood")
    assert first.startswith("a, c: data digits, hash 0123456789ab; likelihood: split test, num 9, binarise none")
    assert first.endswith("dequantisation uniform, K 5") and second == "runs/b: data digits, hash 0123456789ab"
    fid = {"network": "FID", "network_hash": "12", "num": 60, "real": {"split": "test", "num": 9}}
    fid |= {"precision": {"value": 0.5}, "recall": {"value": 0.5}, "neighbours_num": 9}
    fid["kernel_distance"] = {"value": 0.1, "standard_error": 0.1}
    fid |= {"frechet_distance": {"value": 2.0, "low": 1.0, "high": 3.0}, "spatial_frechet_distance": {"value": 5.0}}
    fid |= {"density": {"value": 0.5}, "coverage": {"value": 0.5}, "memorisation": {"value": 0.5}}
    fid |= {"inception_score": {"value": 9.0, "spread": 0.1}}
    lines = table([outcome(quality=fid)])
    assert "FID  " in lines and "2.000 (1.000 to 3.000)" in lines and "sFID  " in lines and "9.000 ± 0.100" in lines
    assert "inception score" in lines and "classifier's score" not in lines


@pytest.mark.slow
def test_several_runs_are_scored_by_one_command(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    assert evaluate.command([str(run), str(other), "--num", "20", "--samples", "60"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(run)) and lines[1].startswith(str(other))
    assert lines[-2:] == [str(path / "evaluation.json") for path in (run, other)]
    first, second = (json.loads((path / "evaluation.json").read_text()) for path in (run, other))
    assert first["quality"] == second["quality"] and first["likelihood"]["nats"] == second["likelihood"]["nats"]


def test_a_folder_of_pictures_has_the_scores_of_the_same_images_in_a_file(run, tmp_path, capsys):
    sample.command([str(run), "--num", "60", "--out", str(tmp_path / "x.npz"), "--steps", "3"])
    sample.command([str(run), "--num", "60", "--out", str(tmp_path / "folder"), "--steps", "3"])
    for name in ("x.npz", "folder"):
        words = ["--images", str(tmp_path / name), "--data.name", "digits", "--num", "20"]
        assert evaluate.command([*words, "--out", str(tmp_path / f"{name}.json")]) == 0
    scores = [json.loads((tmp_path / name).read_text()) for name in ("x.npz.json", "folder.json")]
    assert scores[0]["quality"] == scores[1]["quality"] and "folder" in capsys.readouterr().out


@pytest.mark.slow
def test_sampling_and_scoring_show_their_progress(run, tmp_path, capsys):
    words = ["--num", "20", "--samples", "60", "--batch-size", "20", "--out", str(tmp_path / "x.json")]
    assert evaluate.command([str(run), *words]) == 0
    shown = capsys.readouterr().err
    assert re.search(r"sampling: .*60/60 \[\d+:\d+<\d+:\d+", shown) and re.search(r"scoring: .*1/1 \[", shown)


@pytest.mark.slow
def test_few_samples_are_held_at_a_time_and_their_parts_change_no_score(run, tmp_path, monkeypatch):
    """Of those that were drawn before, nothing is left when more are."""
    features_of_each, sizes, left, drawn = quality.features_of_each, [], [], []

    def spy(networks, num, fetch, title, chunk, store):
        def fetch_and_note(start, stop):
            gc.collect()
            left.append(sum(len(images()) for images in drawn if images() is not None))
            images = fetch(start, stop)
            drawn.append(weakref.ref(images))
            sizes.append(len(images))
            return images

        return features_of_each(networks, num, fetch_and_note, title, chunk, store)

    monkeypatch.setattr(quality, "features_of_each", spy)
    words = [str(run), "--num", "20", "--samples", "60", "--batch-size", "20", "--no-memorisation"]
    documents = []
    for chunk in (sample_scores.CHUNK, 20):
        monkeypatch.setattr(sample_scores, "CHUNK", chunk)
        out = tmp_path / f"{chunk}.json"
        assert evaluate.command([*words, "--out", str(out)]) == 0
        documents.append(json.loads(out.read_text()))
    assert sizes == [60, 20, 20, 20] and left == [0] * 4
    assert documents[0]["quality"] == documents[1]["quality"] and documents[0]["labels"] == documents[1]["labels"]


def test_memorisation_is_judged_where_it_is_asked_for(run, tmp_path, capsys):
    words = ["--num", "20", "--samples", "60", "--no-memorisation", "--out", str(tmp_path / "x.json")]
    assert evaluate.command([str(run), *words]) == 0
    scores = json.loads((tmp_path / "x.json").read_text())["quality"]
    assert "memorisation" not in scores and "reference" not in scores and scores["frechet_distance"]["value"] > 0
    head, cells = capsys.readouterr().out.splitlines()[2:4]
    assert dict(zip(re.split("  +", head), re.split("  +", cells)))["memorisation"] == "-"


def test_a_run_that_fails_hides_none_that_did_not(tmp_path, capsys):
    def fail():
        raise UserError("its data is gone")

    names = [str(tmp_path / name / "x.json") for name in "abc"]
    with pytest.raises(UserError, match=f"^{tmp_path}/b: its data is gone$"):
        evaluate.finish([(names[0], outcome), (names[1], fail), (names[2], outcome)])
    shown = capsys.readouterr().out
    assert shown.count("exact, N 9") == 2 and names[0] in shown and names[1] not in shown and names[2] in shown
    assert all(json.loads((tmp_path / name / "x.json").read_text())["system"] == "vae" for name in "ac")


@pytest.mark.parametrize(
    "arrays,words",
    [
        ({"images": np.zeros((60, 9, 8, 1), np.uint8)}, "shape"),
        ({"images": np.zeros((60, 8, 8, 1), np.float32)}, "float32"),
        ({"images": np.zeros((49, 8, 8, 1), np.uint8)}, "49 images"),
        ({"images": np.zeros((60, 8, 8, 1), np.uint8), "labels": np.arange(60)}, "labels are from 0 to 59"),
    ],
)
def test_images_that_cannot_be_compared_are_said_before_anything_is_trained(tmp_path, monkeypatch, arrays, words):
    monkeypatch.setattr(sample_scores, "make_comparison", lambda *args: pytest.fail("features and classifier are made"))
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=words):
        evaluate.command(["--images", str(tmp_path / "x.npz"), "--data.name", "digits", "--out", str(tmp_path / "x")])


def test_a_run_whose_data_is_gone_is_one_line_and_loses_nothing(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    document = json.loads((own / "config.json").read_text())
    document["experiment"]["data"]["name"] = f"folder:{tmp_path / 'pictures'}"  # as after training on it
    (own / "config.json").write_text(json.dumps(document))
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"^[^\n]*{tmp_path / 'pictures'}[^\n]*$"):
        evaluate.command([str(own), "--num", "60"])
    assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}


def test_distances_stand_where_a_likelihood_is_no_number(run, tmp_path, monkeypatch, capsys):
    def wrong(*args):
        raise UserError("the likelihood of 1 of 20 images is not finite")

    monkeypatch.setattr(held_out, "likelihood", wrong)
    with pytest.raises(UserError, match="^the likelihood of 1 of 20 images is not finite$"):
        evaluate.command([str(run), "--num", "20", "--samples", "60", "--out", str(tmp_path / "x.json")])
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["quality"]["precision"] and document["likelihood"] is None and "FD" in capsys.readouterr().out
    assert document["errors"] == {"likelihood": "the likelihood of 1 of 20 images is not finite"}


def test_scores_are_printed_also_where_they_cannot_be_written(tmp_path, capsys):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(UserError, match="x.json: Is a directory"):
        evaluate.finish([(str(tmp_path / "x.json"), outcome)])
    shown = capsys.readouterr().out
    assert "exact, N 9" in shown and "x.json" not in shown


def test_an_earlier_outcome_is_kept(tmp_path):
    path = tmp_path / "evaluation.json"
    for step in (3, 4, 5):
        evaluate.finish([(str(path), lambda step=step: outcome(step=step))], keep=True)
    files = [tmp_path / name for name in ("evaluation.1.json", "evaluation.2.json", "evaluation.json")]
    assert sorted(tmp_path.iterdir()) == files
    assert [json.loads(file.read_text())["step"] for file in files] == [3, 4, 5]


def generator_of(images, data, conditions=(), codes=(), log_density=None, **functions):
    """Something like a Generator of images, with these functions."""
    model = GenerativeModel("pretended", DataSpec(images, {"label": ArraySpec((), "int32", 10)}), None, ())
    model = model._replace(conditions=conditions, codes=codes, log_density=log_density)
    return SimpleNamespace(
        config=SimpleNamespace(data=data), model=model, likelihood="lower_bound", params={}, **functions
    )


def scored(nats, log_density=None, **arguments):
    """The likelihood of the first digits by a model that says `nats` of each."""

    def log_prob(key, images, **options):
        return np.asarray(nats, np.float32)[: len(images)]

    gen = generator_of(ImageSpec(8, 8, 1, 256), Data(), log_density=log_density, log_prob=log_prob)
    return held_out.likelihood(gen, dataset.load(Data()), evaluate.Arguments(**arguments), {"samples": 3})


def test_dequantisation_is_part_of_the_protocol(cache):
    assert "dequantisation" not in scored(-np.ones(5), num=5)["protocol"]
    protocol = scored(-np.ones(5), num=5, log_density=pytest.fail)["protocol"]
    assert protocol["dequantisation"] == "uniform" and protocol["samples"] == 3


def test_likelihoods_that_have_no_error_or_no_mean(cache):
    scores = scored([-2.0], num=1)
    assert scores["nats"] == {"mean": -2.0, "standard_error": None}
    assert "-2.000  " in table([outcome(likelihood=scores)])
    nats = scored(-np.arange(7.0), likelihood_images=3)["nats"]
    assert nats["mean"] == -1.0 and nats["standard_error"] == pytest.approx(1 / np.sqrt(3))
    with pytest.raises(UserError, match="the likelihood of 2 of 4 images is not finite"):
        scored([0.0, np.nan, 1.0, -np.inf], num=4)


def test_reconstructions_by_hand(cache):
    """A model whose codes are one pixel of an image, and whose images are four levels off."""
    data = Data(levels=256)
    opened = dataset.load(data)
    batch = opened.splits["test"].fetch(np.arange(60))
    images = batch["image"]

    def encode(key, x, label, **where):
        np.testing.assert_array_equal(label, batch["label"])
        return x[:, 2:3, 2:3].astype(np.int32) // 15

    def decode(key, codes, label, **where):
        np.testing.assert_array_equal(label, batch["label"])
        return np.where(images < 128, images + 4, images - 4).astype(np.uint8)

    functions = {"conditions": ("label",), "encode": encode, "decode": decode}
    gen = generator_of(ImageSpec(8, 8, 1, 256), data, codes=(ImageSpec(1, 1, 1, 20),), **functions)
    made, labels, scores = held_out.reconstruction(gen, opened, evaluate.Arguments(num=60))
    np.testing.assert_array_equal(made, decode(None, None, batch["label"]))
    np.testing.assert_array_equal(labels, batch["label"])
    assert scores["mse"] == pytest.approx((4 / 255) ** 2) and scores["psnr"] == pytest.approx(20 * np.log10(255 / 4))
    counts = np.unique(images[:, 2, 2] // 15, return_counts=True)[1]
    assert scores["codes"] == 20 and scores["codes_used"] == len(counts) > 3 and scores["num"] == 60
    assert scores["perplexity"] == pytest.approx(np.exp(scipy.stats.entropy(counts)))
    # Of several grids of codes, each has scores of its own.
    several = gen.model._replace(codes=(ImageSpec(1, 1, 1, 20), ImageSpec(1, 1, 1, 300)))
    gen = SimpleNamespace(**{**vars(gen), "model": several})
    gen.encode = lambda key, x, **where: (encode(key, x, **where), np.full((60, 1, 1, 1), 299))
    first, second = held_out.reconstruction(gen, opened, evaluate.Arguments(num=60))[2]["grids"]
    assert first == {name: scores[name] for name in ("codes", "codes_used", "perplexity")}
    assert second == {"codes": 300, "codes_used": 1, "perplexity": 1.0}


def test_the_whole_training_is_told_beside_the_step_that_is_scored(monkeypatch):
    """120 s of training to step 10, those of a frozen model among them, and 60 more to the newest."""
    at = {10: 100.0, 30: 160.0}
    monkeypatch.setattr(checkpoints, "newest_good", lambda folder: 30)
    monkeypatch.setattr(checkpoints, "seconds_at", lambda folder, step: at[step])
    trained = evaluate.length_of_training(SimpleNamespace(step=10, seconds=120.0), None)
    assert trained == {"steps": 30, "minutes": 3.0}


def test_the_picture_has_the_first_images_of_every_class(tmp_path):
    images = np.arange(45, dtype=np.uint8).reshape(45, 1, 1, 1) + 100
    sample_scores.write_grid(tmp_path / "a.png", images, np.arange(45) % 20)  # of 20 classes, two have but two images
    assert np.unique(Image.open(tmp_path / "a.png")).tolist() == [64, *range(100, 110), *range(120, 130)]
    sample_scores.write_grid(tmp_path / "b.png", images, None)
    assert np.unique(Image.open(tmp_path / "b.png")).tolist() == [64, *range(100, 145)]


def test_images_are_the_same_however_many_are_read_at_once(cache, monkeypatch):
    """Binarised by their own keys, whatever stands beside them."""
    seen = []

    def log_prob(key, images, **where):
        seen.append((images, where["label"]))
        return -np.ones(len(images), np.float32)

    data = Data(binarise="dynamic")
    gen = generator_of(ImageSpec(8, 8, 1, 2), data, conditions=("label",), log_prob=log_prob)
    for at_once in (1000, 4):
        monkeypatch.setattr(held_out, "AT_ONCE", at_once)
        held_out.likelihood(gen, dataset.load(data), evaluate.Arguments(num=9), {})
    for whole, parts in zip(*seen):
        np.testing.assert_array_equal(whole, parts)
    assert seen[0][0].shape == (9, 8, 8, 1) and set(np.unique(seen[0][0])) == {0, 1}


def test_a_name_of_data_that_is_given_is_taken_also_where_it_is_the_default(run, tmp_path):
    """A run of other data, which is gone, is scored on digits where they are asked for, and only there."""
    own = shutil.copytree(run, tmp_path / "own")
    document = json.loads((own / "config.json").read_text())
    document["experiment"]["data"]["name"] = "npz:nowhere.npz"
    (own / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="nowhere.npz"):
        evaluate.command([str(own), "--samples", "0"])
    assert evaluate.command([str(own), "--samples", "0", "--num", "2", "--data.name", "digits"]) == 0


def test_data_that_has_changed_since_the_training_is_refused(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    document = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**document, "data_fingerprint": "0123"}))
    with pytest.raises(UserError, match="digits has changed since .*own was trained on it"):
        evaluate.command([str(own)])


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
        (["RUN", "--samples", "20"], ["--samples is 20", "at least 50 images"]),
        (["RUN", "--num", "5"], ["--num is 5", "at least 6 real images"]),
        (["RUN", "--out", "RUN"], ["cannot write", "Is a directory"]),
        (["RUN", "--sampling.steps", "0"], ["steps is 0"]),
        (["RUN", "--images", "x.npz"], ["instead of runs"]),
        (["--images", "x.npz"], ["--out"]),
        (["RUN", "--inception", "nowhere.pth"], ["no file nowhere.pth"]),
        (["RUN", "--num", "-1"], ["--num is -1", "zero or above"]),
        (["RUN", "--likelihood-images", "-1"], ["--likelihood-images is -1"]),
        (["RUN", "--samples", "-1"], ["--samples is -1"]),
        (["RUN", "--seed", "-1"], ["--seed is -1"]),
        (["RUN", "--batch-size", "0"], ["--batch-size is 0"]),
        (["RUN", "--data.name", "folder:nowhere"], ["nowhere does not exist", "--data.name"]),
        (["RUN", "--data.levels", "2"], ["--data.levels is about --images"]),
        (["RUN", "--samples", "0", "--inception", "x.pth"], ["--inception", "--samples 0"]),
        (["RUN", "--samples", "0", "--grid", "x.png"], ["--grid", "--samples 0"]),
        (["RUN", "--samples", "0", "--clip", "x"], ["--clip", "--samples 0"]),
        (["RUN", "--clip", "RUN"], ["clip is a ddpm: it must be a model that provides embed_image and embed_text"]),
        (["RUN", "--clip", "nowhere"], ["no run at nowhere"]),
        (["RUN", "--prompts", "a {}"], ["--prompts are for a run that compares images with texts", "--samples 0"]),
        (["RUN", "--samples", "0", "--sampling.steps", "3"], ["--sampling", "--samples 0"]),
        (["RUN", "RUN", "--grid", "x.png"], ["one run"]),
        (["RUN", "--step", "never"], ["--step", "best"]),
        (["RUN", "--reconstruct"], ["ddpm cannot reconstruct: that takes encode and decode; it can sample"]),
        (["RUN", "--reconstruct", "--num", "49"], ["--num is 49", "at least 50 reconstructions"]),
        ([*FILE, "--num", "-1"], ["--num is -1"]),
        ([*FILE, "--step", "3"], ["--step is about runs"]),
        ([*FILE, "--no-ema"], ["--no-ema is about runs"]),
        ([*FILE, "--samples", "60"], ["--samples is about runs"]),
        ([*FILE, "--likelihood-images", "5"], ["--likelihood-images is about runs"]),
        ([*FILE, "--reconstruct"], ["--reconstruct is about runs"]),
        ([*FILE, "--grid", "x.png"], ["--grid is about runs"]),
        ([*FILE, "--clip", "x"], ["--clip is about runs"]),
        ([*FILE, "--batch-size", "5"], ["--batch-size is about runs"]),
        ([*FILE, "--prompts", "a {}"], ["--prompts is about runs"]),
    ],
)
def test_mistakes_are_one_line(run, args, words):
    with pytest.raises(UserError) as caught:
        evaluate.command([str(run) if a == "RUN" else a for a in args])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
