"""Loading a run, sampling from it, scoring images, and the same through sample.py."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jgen
import sample
import train
from jgen.core import keys as rng
from jgen.core.generate import resolve_options
from jgen.data import dataset as datasets
from jgen.data.config import Config as Data

TINY = ["configs/diffusion/ddpm.py:tiny", "--train.steps", "4", "--train.sample-every", "0"]
TINY += ["--train.optimiser.learning-rate", "0.02", "--train.optimiser.warmup-steps", "0"]  # so that labels matter
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.command([*TINY, "--train.validate-every", "0", "--workdir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def gen(run):
    return jgen.load(run)


@pytest.fixture(scope="module")
def images(cache):
    batch = datasets.load(Data()).splits["test"].fetch(np.arange(5))
    return batch["image"], batch["label"]


def assert_same_images(a, b):
    """Equal but for the last bit of a float that fell on the edge between two levels."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.max(np.abs(a.astype(int) - b.astype(int))) <= 1 and np.mean(a != b) < 0.01


def test_what_load_returns(gen, run):
    assert gen.step == 4 and gen.likelihood == "lower_bound"
    assert gen.model.name == "ddpm" and gen.model.images.shape == (8, 8, 1)
    assert isinstance(gen.config, jgen.Experiment) and gen.config.train.steps == 4
    assert "ddpm" in repr(gen) and "8x8x1" in repr(gen) and "step 4" in repr(gen)
    assert jgen.load(str(run), step=4).step == 4


def test_samples(gen):
    found = gen.sample(KEY, 3)
    assert found.shape == (3, 8, 8, 1) and found.dtype == np.uint8 and isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, gen.sample(KEY, 3))
    assert np.any(found != gen.sample(jax.random.key(4), 3))
    assert np.any(found[0] != found[1])


def test_labels(gen):
    np.testing.assert_array_equal(gen.labels(12), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    np.testing.assert_array_equal(gen.labels(3, start=9), [9, 0, 1])
    np.testing.assert_array_equal(gen.labels(2, label=7), [7, 7])
    np.testing.assert_array_equal(gen.labels(2, label=[7, 1]), [7, 1])
    assert gen.labels(2).dtype == np.int32
    in_turn = gen.sample(KEY, 3)
    np.testing.assert_array_equal(in_turn, gen.sample(KEY, 3, label=[0, 1, 2]))
    np.testing.assert_array_equal(in_turn, gen.sample(KEY, 3, label=np.arange(3)))
    sevens = gen.sample(KEY, 3, label=7)
    np.testing.assert_array_equal(sevens, gen.sample(KEY, 3, label=[7, 7, 7]))
    assert np.any(sevens != in_turn)


def test_an_image_does_not_depend_on_how_many_are_asked_for(gen):
    whole = gen.sample(KEY, 7, batch_size=3)
    assert_same_images(gen.sample(KEY, 3), whole[:3])
    assert_same_images(gen.sample(KEY, 3, start=4), whole[4:])
    assert_same_images(gen.sample(KEY, 7), whole)
    counted = []
    gen.sample(KEY, 7, batch_size=3, progress=lambda chunks: (counted.append(c) or c for c in chunks))
    assert len(counted) == 3


def test_the_average_and_the_weights_themselves(run, gen):
    raw = jgen.load(run, ema=False)
    differ = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), gen.params, raw.params)
    assert any(jax.tree.leaves(differ))
    assert np.any(gen.sample(KEY, 3) != raw.sample(KEY, 3))


def test_options_are_resolved_over_those_of_the_run(gen):
    assert resolve_options(gen.model, "sample", {}) == gen.config.model.sampling == gen.model.sampling
    assert gen.model.sampling.steps == 5
    found = resolve_options(gen.model, "sample", {"steps": 3, "times": [5, 2]})
    assert found == dataclasses.replace(gen.model.sampling, steps=3, times=(5, 2))
    default = gen.sample(KEY, 3)
    np.testing.assert_array_equal(default, gen.sample(KEY, 3, steps=5))
    np.testing.assert_array_equal(default, gen.sample(KEY, 3, times=[10, 8, 6, 4, 2]))
    assert np.any(default != gen.sample(KEY, 3, sampler="ancestral"))


def test_log_prob_and_bits_per_dim(gen, images):
    image, label = images
    nats = gen.log_prob(KEY, image, label=label)
    assert nats.shape == (5,) and nats.dtype == np.float32 and np.all(np.isfinite(nats)) and np.all(nats < 0)
    bits = gen.bits_per_dim(KEY, image, label=label)
    assert bits.shape == (5,)
    np.testing.assert_allclose(bits, -nats / (64 * math.log(2)), rtol=1e-6)
    np.testing.assert_allclose(gen.log_prob(KEY, image, label=label, batch_size=2), nats, rtol=1e-4)
    assert np.any(gen.log_prob(KEY, image, label=(label + 1) % 10) != nats)
    same = gen.log_prob(KEY, image, label=3)
    np.testing.assert_allclose(same, gen.log_prob(KEY, image, label=[3] * 5), rtol=1e-6)


def test_a_run_loads_from_anywhere(run, python, tmp_path):
    program = """
import sys, jax, numpy as np, jgen
from jgen.cli import set_up_process
set_up_process()
gen = jgen.load(sys.argv[1])
np.save(sys.argv[2], gen.sample(jax.random.key(3), 3))
"""
    moved = tmp_path / "a run, moved"
    moved.symlink_to(run)
    python("-c", program, moved.name, "images.npy", cwd=tmp_path)
    assert_same_images(np.load(tmp_path / "images.npy"), jgen.load(run).sample(KEY, 3))


def test_the_functions_work_under_jit_vmap_and_grad_of_the_user(gen, images):
    image, label = images
    model, params, ctx = gen.model, gen.params, gen.ctx
    index = jnp.arange(5)
    batch = {"image": image, "label": label, "index": index}
    keys = rng.image_keys(KEY, index)
    score = jax.jit(lambda params, keys: model.log_prob(params, ctx, keys, image, label))
    np.testing.assert_allclose(score(params, keys), gen.log_prob(KEY, image, label=label), rtol=1e-4)

    options = {**dataclasses.asdict(model.sampling), "steps": 2}
    drawn = jax.jit(lambda keys: model.sample(params, ctx, keys, jnp.asarray(label), **options))(keys)
    assert_same_images(np.asarray(drawn), gen.sample(KEY, 5, label=label, steps=2))

    loss = lambda params, keys: model.phases[0].loss(params, ctx, keys, batch)[0]
    two = jnp.stack([keys, rng.image_keys(jax.random.key(9), index)])
    many = jax.jit(jax.vmap(loss, (None, 0)))(params, two)
    both = jax.jit(jax.value_and_grad(loss))
    np.testing.assert_allclose(many, [both(params, each)[0] for each in two], rtol=1e-4)
    gradient = both(params, keys)[1]
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves) and any(np.any(leaf != 0) for leaf in leaves)


def test_sample_py_writes_a_grid_arrays_and_a_folder(run, gen, tmp_path, capsys):
    wanted = gen.sample(jax.random.key(3), 5, label=4, steps=2, start=1)
    args = [str(run), "--num", "5", "--seed", "3", "--label", "4", "--steps", "2", "--start", "1", "--out"]
    assert sample.command([*args, str(tmp_path / "new" / "grid.png"), "--columns", "2"]) == 0
    assert "5 images" in capsys.readouterr().out
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        assert grid.mode == "L" and grid.size == (2 * 50 + 2, 3 * 50 + 2)  # 8x8 enlarged six times, gaps of 2
        sheet = np.asarray(grid)
    for i in range(5):
        top, left = 2 + i // 2 * 50, 2 + i % 2 * 50
        np.testing.assert_array_equal(sheet[top : top + 48 : 6, left : left + 48 : 6], wanted[i, ..., 0])

    assert sample.command([*args, str(tmp_path / "arrays.npz")]) == 0
    with np.load(tmp_path / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], wanted)
        np.testing.assert_array_equal(arrays["labels"], [4] * 5)

    assert sample.command([*args, str(tmp_path / "folder")]) == 0
    names = sorted(p.name for p in (tmp_path / "folder").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    for i, name in enumerate(names):
        with Image.open(tmp_path / "folder" / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), wanted[i, ..., 0])


def test_sample_py_without_the_average(run, tmp_path):
    found = []
    for option in ("--ema", "--no-ema"):
        out = tmp_path / f"{option}.npz"
        assert sample.command([str(run), "--num", "3", "--seed", "3", option, "--out", str(out)]) == 0
        with np.load(out) as arrays:
            found.append(arrays["images"])
    np.testing.assert_array_equal(found[0], jgen.load(run).sample(KEY, 3))
    np.testing.assert_array_equal(found[1], jgen.load(run, ema=False).sample(KEY, 3))
