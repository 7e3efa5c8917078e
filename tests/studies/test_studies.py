"""Studies: their measures by hand, records that are gone on with, the evaluations of the adaptive solver."""

import json

import jax
import numpy as np
import pytest
import scipy.spatial
from conftest import mistake, real_images

import jgen
from jgen.samplers.diffusion import Sampling, evaluations
from jgen.studies import receptive_field, sampling_noise, sampling_steps, scores

FEW = ["--samples", "60"]


def test_the_spread_within_classes_by_scipy():
    x, classes = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32), np.arange(40) % 3
    means = [scipy.spatial.distance.pdist(x[classes == c]).mean() for c in range(3)]
    assert scores.spread_within(x, classes) == pytest.approx(np.mean(means), rel=1e-4)
    assert scores.spread_within(x, None) == pytest.approx(scipy.spatial.distance.pdist(x).mean(), rel=1e-4)


@pytest.mark.slow
def test_training_images_are_copies_and_test_images_are_not(tiny_run):
    """Both as they would be as samples: through the model's levels."""
    opened = scores.open_run(str(tiny_run), seed=0)
    gen = opened.gen
    images, labels = real_images(gen.config.data, 200, "train")
    copied = scores.pixel_scores(opened, scores.as_pixels(images, gen.model.images.levels), labels)
    assert copied["copies"] == 1.0 and copied["nearest"] < 0.01 and 0.9 < copied["diversity"] < 1.1
    images, labels = real_images(gen.config.data, 297, "test")
    unseen = scores.pixel_scores(opened, scores.as_pixels(images, gen.model.images.levels), labels)
    assert unseen["copies"] == pytest.approx(0.05, abs=0.01)
    assert unseen["nearest"] == pytest.approx(1) and unseen["diversity"] == pytest.approx(1)


def test_points_of_a_sampler_have_the_evaluations_that_were_wanted():
    counts = list(sampling_steps.COUNTS)
    one_a_step = [options["steps"] for options in sampling_steps.points_of("ddim")]
    assert one_a_step == counts
    heun = [evaluations(Sampling(sampler="heun", **options)) for options in sampling_steps.points_of("heun")]
    assert heun == [1, 3, 5, 7, 11, 17, 35, 69, 125, 249]  # two at each time but the last
    assert len(list(sampling_steps.points_of("ode"))) == len(sampling_steps.TOLERANCES)


def test_a_record_is_gone_on_with(tmp_path):
    asked, out = [], tmp_path / "study.json"

    def score(setting):
        asked.append(setting["steps"])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"fd": setting["steps"] / 2}

    settings = [{"steps": steps, "sigmas": (0.5, 0.25)} for steps in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        scores.score_all(out, settings, score)
    rows = scores.score_all(out, settings, score)
    assert asked == [1, 2, 3, 3] and [row["fd"] for row in rows] == [0.5, 1.0, 1.5]
    document = json.loads(out.read_text())
    assert document["rows"] == rows
    assert all({"commit", "processor"} <= set(row["environment"]) and row["command"] for row in rows)
    assert scores.score_all(out, settings[1:], score) == rows[1:] and len(asked) == 4  # no setting is scored again


@pytest.mark.slow
def test_both_studies_of_a_run(tiny_run, tmp_path, monkeypatch, capsys):
    few = ["ancestral, no noise", "ddim, eta 0"]
    monkeypatch.setattr(sampling_noise, "SETTINGS", [s for s in sampling_noise.SETTINGS if s[0] in few])
    monkeypatch.setattr(sampling_steps, "COUNTS", (1, 2))
    out = ["--out", str(tmp_path)]
    assert sampling_noise.command([str(tiny_run), "--steps", "2", *FEW, *out]) == 0
    assert sampling_steps.command([str(tiny_run), "--samplers", "ddim", *FEW, *out]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in few) and "| ddpm | ddim | 2 |" in printed
    for name in ("sampling_noise", "sampling_steps"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "sampling_noise.json").read_text())["rows"]
    assert [row["setting"]["name"] for row in rows] == few
    for row in rows:
        assert 0 <= row["recall"] <= 1 and row["diversity"] > 0 and row["fd"]["low"] < row["fd"]["value"]


@pytest.mark.slow
def test_evaluations_of_the_adaptive_solver_rise_with_its_precision(tiny_run):
    gen = jgen.load(tiny_run)
    coarse, fine = (
        sampling_steps.mean_evaluations(gen, {"sampler": "ode", "tolerance": t}, 0, num=4) for t in (0.1, 1e-4)
    )
    assert 6 <= coarse < fine


@pytest.mark.slow
def test_what_a_study_cannot_be_of(tiny_run, tmp_path):
    out = ["--out", str(tmp_path)]
    mistake(lambda: sampling_noise.command(out), "which run?")
    mistake(lambda: sampling_steps.command([str(tiny_run), "--samplers", "ddim,leapfrog", *out]), "'leapfrog'", "heun")
    mistake(lambda: sampling_steps.command([str(tmp_path / "none"), *out]), "none")


@pytest.mark.slow
def test_a_trajectory_as_a_user_has_it(tiny_run, tmp_path):
    """`gen.trajectory`, and the animated picture of sample.py, whose last frame is the grid of the samples."""
    from PIL import Image

    import sample

    gen = jgen.load(tiny_run)
    path = gen.trajectory(jax.random.key(0), 3, label=2, steps=4)
    assert path.shape == (3, 5, 8, 8, 1)
    np.testing.assert_array_equal(path[:, -1], gen.sample(jax.random.key(0), 3, label=2, steps=4))
    grid, way = tmp_path / "grid.png", tmp_path / "way.webp"
    args = [str(tiny_run), "--num", "3", "--label", "2", "--steps", "4", "--out", str(grid), "--trajectory", str(way)]
    assert sample.command(args) == 0
    with Image.open(way) as animation, Image.open(grid) as still:
        assert 2 <= animation.n_frames <= 5  # like ones are one
        animation.seek(animation.n_frames - 1)
        np.testing.assert_array_equal(np.asarray(animation.convert("L")), np.asarray(still))
    mistake(lambda: sample.command([*args[:-1], str(tmp_path / "way.mp4")]), "--trajectory", ".gif")


SIZE = 7
SMALL = {"features": 8, "hidden": 8, "blocks": 2, "first_kernel": 3}
TRANSFORMER = {"attention": "strided", "stride": "SIZE", "layers": 2, "augmentation": "none"}


def small(name, changes, without=()):
    return receptive_field.Network(name, f"configs/autoregressive/{name}.py:tiny", changes, without)


@pytest.mark.slow
def test_receptive_fields_are_those_of_the_masks(tmp_path, monkeypatch, capsys):
    """With a record that is gone on with, a table and a figure."""
    networks = {
        "pixelcnn": small("pixelcnn", SMALL),
        "gated": small("gated_pixelcnn", SMALL),
        "1 layer": small("image_transformer", TRANSFORMER, ("blocks_1",)),
        "2 layers": small("image_transformer", TRANSFORMER),
    }
    monkeypatch.setattr(receptive_field, "NETWORKS", tuple(networks.values()))
    out = ["--size", str(SIZE), "--draws", "3", "--out", str(tmp_path)]
    assert receptive_field.command(out) == 0
    assert "| pixelcnn | configs/autoregressive/pixelcnn.py:tiny | 24 | 3 | 12.5 |" in capsys.readouterr().out
    assert (tmp_path / "receptive_field.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "receptive_field.json").read_text())["rows"]
    fields = {name: np.array(row["field"]) > 0 for name, row in zip(networks, rows, strict=True)}
    row, column = np.mgrid[:SIZE, :SIZE]
    up, right, before = SIZE // 2 - row, column - SIZE // 2, row * SIZE + column < SIZE**2 // 2
    np.testing.assert_array_equal(fields["pixelcnn"], before & (right <= up))
    np.testing.assert_array_equal(fields["gated"], before)
    recent = (
        row * SIZE + column >= SIZE**2 // 2 - 1 - SIZE
    )  # a position attends to SIZE before it, each of the value before
    np.testing.assert_array_equal(fields["1 layer"], before & recent)
    np.testing.assert_array_equal(fields["2 layers"], before)
    assert [r["unseen"] for r in rows] == [3, 0, 24 - SIZE - 1, 0] and all(r["later"] == 0 for r in rows)


def test_what_has_no_receptive_field(tmp_path):
    out = ["--out", str(tmp_path)]
    mistake(lambda: receptive_field.command(["--size", "6", *out]), "--size is 6: it must be odd")
    mistake(lambda: receptive_field.make_model("configs/vae/vae.py:tiny", {}, 8), "vae provides no `conditionals`")
