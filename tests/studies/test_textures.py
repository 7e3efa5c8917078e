"""The picture of textures: what stands where in it, and its mistakes; scores of a run."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import mistake, real_images
from PIL import Image
from specs import data_of

import jgen
import train
from jgen import evaluate
from jgen.data.grids import make_grid
from jgen.data.pictures import to_display
from jgen.studies import textures


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "texture"
    config = "configs/classical/texture_portilla.py:tiny"
    train.command([config, "--workdir", str(folder), "--train.samples-per-class", "0"])
    return folder


@pytest.mark.slow
def test_samples_are_scored_beside_crops_that_were_held_out(run, tmp_path):
    out = tmp_path / "score.json"
    evaluate.command([str(run), "--samples", "2", "--out", str(out)])
    scores, gen = json.loads(out.read_text())["texture_error"], jgen.load(run)
    error = jax.jit(gen.model.functions["texture_error"], static_argnums=3)
    crops, _ = real_images(gen.config.data, scores["num_crops"])
    made = gen.sample(jax.random.key(0), 2)
    np.testing.assert_allclose(scores["crops"], np.mean(error(gen.params, gen.ctx, crops, True)), rtol=1e-4)
    np.testing.assert_allclose(scores["mean"], np.mean(error(gen.params, gen.ctx, made, False)), rtol=1e-3)


def test_a_row_is_a_crop_and_the_first_sample_of_each_run_of_its_picture(run, tmp_path):
    out = tmp_path / "textures.png"
    other = shutil.copytree(run, tmp_path / "other")
    assert textures.command([str(run), str(other), "--out", str(out), "--seed", "3"]) == 0
    gen = jgen.load(run)
    crop, _ = real_images(gen.config.data, 1, "train")
    sample = gen.sample(jax.random.key(3), 1)
    wanted = make_grid(to_display(np.concatenate([crop, sample, sample]), gen.model.images.levels), 3)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), wanted[..., 0])


def gen_of(name, functions=("texture_error",), size=8):
    model = SimpleNamespace(name="texture", functions=dict.fromkeys(functions), images=data_of(size, size, 1, 4).image)
    return SimpleNamespace(model=model, config=SimpleNamespace(data=SimpleNamespace(name=name)))


def test_runs_stand_in_the_rows_of_their_pictures():
    gens = {"a": gen_of("brick"), "b": gen_of("grass"), "c": gen_of("brick"), "d": gen_of("grass")}
    assert textures.rows_of(gens) == [["a", "c"], ["b", "d"]]
    mistake(lambda: textures.rows_of({**gens, "e": gen_of("grass")}), "2 of brick, 3 of grass", "as many runs")
    mistake(lambda: textures.rows_of({**gens, "e": gen_of("brick", ())}), "e is a texture", "a system of textures")
    mistake(lambda: textures.rows_of({**gens, "e": gen_of("brick", size=4)}), "e has images", "those of a are")


@pytest.mark.parametrize("options,words", [([], "which runs?"), (["run", "--out", "x.jpg"], "must end in .png")])
def test_mistakes_are_one_line(options, words):
    mistake(lambda: textures.command(options), words)
