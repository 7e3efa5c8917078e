"""Loading a run, sampling from it, scoring images, and the same through sample.py."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import real_images
from PIL import Image

import jgen
import sample
from jgen.core import keys as rng
from jgen.core.generate import resolve_options, run_over
from jgen.core.model import ArraySpec, Context, DataSpec, ImageSpec
from jgen.data.pictures import to_display
from jgen.errors import UserError
from jgen.models.autoregressive import pixelcnn
from jgen.models.flow import realnvp
from jgen.models.gan import dcgan
from jgen.models.vae import vae, vq_vae

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run


@pytest.fixture(scope="module")
def gen(run):
    return jgen.load(run)


@pytest.fixture(scope="module")
def images(gen):
    return real_images(gen.config.data, 5)


def assert_same_images(a, b):
    """Equal but for the last bit of a float that fell on the edge between two levels."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.max(np.abs(a.astype(int) - b.astype(int))) <= 1 and np.mean(a != b) < 0.01


def test_what_load_returns(gen, run):
    assert gen.step == 4 and gen.likelihood == "lower_bound"
    assert gen.model.name == "ddpm" and gen.model.images.shape == (8, 8, 1)
    assert isinstance(gen.config, jgen.Experiment) and gen.config.train.steps == 4
    assert "ddpm" in repr(gen) and "8x8x1" in repr(gen) and "step 4" in repr(gen)
    again = jgen.load(str(run), step=4)
    assert again.step == 4 and again.model is gen.model  # so that its programs need not be compiled anew
    assert jgen.load(run, step="best").step == 4


def test_samples(gen):
    samples = gen.sample(KEY, 3)
    assert samples.shape == (3, 8, 8, 1) and samples.dtype == np.uint8 and isinstance(samples, np.ndarray)
    np.testing.assert_array_equal(samples, gen.sample(KEY, 3))
    assert np.any(samples != gen.sample(jax.random.key(4), 3))
    assert np.any(samples[0] != samples[1])


def test_labels(gen):
    np.testing.assert_array_equal(gen.conditions(12)["label"], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    np.testing.assert_array_equal(gen.conditions(3, start=9)["label"], [9, 0, 1])
    np.testing.assert_array_equal(gen.conditions(2, label=7)["label"], [7, 7])
    np.testing.assert_array_equal(gen.conditions(2, label=[7, 1])["label"], [7, 1])
    assert set(gen.conditions(2)) == {"label"} and gen.conditions(2)["label"].dtype == np.int32
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
    batches = []

    def progress(starts):
        for start in starts:
            batches.append(start)
            yield start

    gen.sample(KEY, 7, batch_size=3, progress=progress)
    assert len(batches) == 3


def test_the_average_and_the_weights_themselves(run, gen):
    raw = jgen.load(run, ema=False)
    assert bool(gen.ctx.averaged) and not bool(raw.ctx.averaged)
    differ = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), gen.params, raw.params)
    assert any(jax.tree.leaves(differ))
    assert np.any(gen.sample(KEY, 3) != raw.sample(KEY, 3))


def test_options_are_resolved_over_those_of_the_run(gen):
    assert resolve_options(gen.model, "sample", {}) == gen.config.model.sampling == gen.model.sampling
    assert gen.model.sampling.steps == 5
    options = resolve_options(gen.model, "sample", {"eta": 0.5, "times": [0.5, 0.2]})
    assert options == dataclasses.replace(gen.model.sampling, eta=0.5, times=(0.5, 0.2))
    default = gen.sample(KEY, 3)
    np.testing.assert_array_equal(default, gen.sample(KEY, 3, steps=5))
    np.testing.assert_array_equal(default, gen.sample(KEY, 3, times=[1.0, 0.8, 0.6, 0.4, 0.2]))
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


@pytest.mark.slow
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
    batch, cond = {"image": image, "label": label, "index": index}, {"label": jnp.asarray(label)}
    keys = rng.image_keys(KEY, index)
    score = jax.jit(lambda params, keys: model.log_prob(params, ctx, keys, image, cond))
    np.testing.assert_allclose(score(params, keys), gen.log_prob(KEY, image, label=label), rtol=1e-4)

    options = {**dataclasses.asdict(model.sampling), "steps": 2}
    drawn = jax.jit(lambda keys: model.sample(params, ctx, keys, cond, **options))(keys)
    assert_same_images(np.asarray(drawn), gen.sample(KEY, 5, label=label, steps=2))

    def loss(params, keys):
        return model.phases[0].loss(params, ctx, keys, batch)[0]

    two = jnp.stack([keys, rng.image_keys(jax.random.key(9), index)])
    many = jax.jit(jax.vmap(loss, (None, 0)))(params, two)
    both = jax.jit(jax.value_and_grad(loss))
    np.testing.assert_allclose(many, [both(params, each)[0] for each in two], rtol=1e-4)
    gradient = both(params, keys)[1]
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves) and any(np.any(leaf != 0) for leaf in leaves)


# Functions that a model of diffusion does not have, of small models that have not been trained.

SMALL = DataSpec(ImageSpec(4, 4, 1, 4), {"label": ArraySpec((), "int32", 2)})
UNTRAINED = {
    "pixelcnn": pixelcnn.Config(features=6, blocks=1, hidden=6, class_conditional=True),
    "realnvp": realnvp.Config(scales=1, couplings=2, width=4, blocks=0),
    "vae": vae.Config(network="dense", widths=(4,), latent=3),
    "vq_vae": vq_vae.Config(widths=(4,), blocks=0, num_codes=5, code_dim=2),
    "dcgan": dcgan.Config(channels=(4,), latent=3, conditioning="none"),
}
SOME = np.random.default_rng(0).integers(0, 4, (5, 4, 4, 1)).astype(np.uint8)


@functools.cache
def untrained(name):
    experiment = jgen.Experiment(model=UNTRAINED[name])
    model = jgen.make(experiment, SMALL)
    batch = {"image": SOME, "label": np.arange(5, dtype=np.int32) % 2}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    return jgen.Generator(model, params, Context(jnp.int32(0), None, params, extra), experiment, step=0)


def test_inpaint_keeps_the_masked_pixels_and_draws_the_rest():
    gen = untrained("pixelcnn")
    mask = FIRST
    completed = gen.inpaint(KEY, SOME, mask, label=1, temperature=0.8)
    assert completed.shape == SOME.shape and completed.dtype == np.uint8 and completed.max() < 4
    np.testing.assert_array_equal(completed[:, mask], SOME[:, mask])
    assert np.any(completed[:, ~mask] != SOME[:, ~mask])
    masks = np.broadcast_to(mask, (5, 4, 4))
    again = gen.inpaint(KEY, SOME, masks, label=[1] * 5, temperature=0.8, batch_size=2)
    np.testing.assert_array_equal(completed, again)
    nothing = gen.inpaint(KEY, SOME, np.zeros((4, 4), bool), label=1)
    np.testing.assert_array_equal(nothing, gen.sample(KEY, 5, label=1))
    message = mistake(lambda: gen.inpaint(KEY, SOME, np.ones((4, 4), bool), label=1))
    assert message == "mask is true everywhere: there is nothing to complete"


HOLE = np.arange(16).reshape(4, 4) != 5
FIRST = np.arange(16).reshape(4, 4) < 6


@pytest.mark.parametrize(
    "mask,options,words",
    [
        (HOLE.astype(np.float32), {}, "mask is float32: it must be bool, true where a pixel is kept"),
        (HOLE[:3], {}, "mask has shape (5, 3, 4): it must be (4, 4) or (5, 4, 4)"),
        (np.ones((2, 4, 4), bool), {}, "mask has shape (2, 4, 4): it must be (4, 4) or (5, 4, 4)"),
        (np.ones((5, 4, 4, 1), bool), {}, "mask has shape (5, 4, 4, 1): it must be"),
        (HOLE, {}, "mask keeps the pixel at row 1, column 2 but not the one at row 1, column 1"),
        (np.stack([HOLE | True] * 4 + [HOLE]), {}, "mask keeps the pixel at row 1, column 2"),
        (FIRST, {"temperature": 0.0}, "temperature is 0.0: it must be above zero and finite"),
        (FIRST, {"steps": 3}, "unknown option 'steps': inpaint of pixelcnn takes temperature"),
    ],
)
def test_masks_and_options_that_inpaint_cannot_serve(mask, options, words):
    assert words in mistake(lambda: untrained("pixelcnn").inpaint(KEY, SOME, mask, label=1, **options))


def test_log_density_is_what_log_prob_draws_from():
    gen, label = untrained("realnvp"), np.arange(5) % 2
    keys = rng.fold_in(rng.image_keys(KEY, jnp.arange(5)), 0)
    x = SOME + np.asarray(rng.uniform(keys, SMALL.image.shape))
    nats = gen.log_density(KEY, x, label=label, batch_size=2)
    assert nats.shape == (5,) and nats.dtype == np.float32
    np.testing.assert_allclose(nats, gen.log_prob(KEY, SOME, label=label), rtol=1e-5)
    for wrong, words in (
        (x[:0], "x has shape (0, 4, 4, 1): it must be (n, 4, 4, 1)"),
        (x[0], "x has shape (4, 4, 1): it must be (n, 4, 4, 1)"),
        (x + 4, "x has values outside [0, 4)"),
        (x * np.nan, "x has values outside [0, 4)"),
    ):
        assert words in mistake(functools.partial(gen.log_density, KEY, wrong, label=label))
    assert "vae cannot log_density: it can sample" in mistake(lambda: untrained("vae").log_density(KEY, x))


@pytest.mark.parametrize(
    "name,latents,words",
    [
        ("vae", np.zeros((2, 4)), "latents have shape (n, 4): they must be (n, 3)"),
        ("vae", np.zeros((2, 3, 1)), "latents have shape (n, 3, 1): they must be (n, 3)"),
        ("vae", (np.zeros((2, 3)), np.zeros((2, 3))), "latents are a tuple: they must be one array (n, 3)"),
        ("vae", np.zeros((0, 3)), "latents have (0, 3): they must be arrays (n, ...), n above zero"),
        ("vae", 1.0, "latents have (): they must be arrays (n, ...)"),
        ("vae", (), "latents have no shape: they must be arrays (n, ...)"),
        ("vae", np.array(["a", "b"]), "latents are <U1: they must be numbers"),
        ("dcgan", np.zeros((2, 13)), "latents have shape (n, 13): they must be (n, 3)"),
        ("realnvp", np.zeros((2, 3)), "latents have shapes ((3,),): they must be ((4, 4, 1),)"),
        ("vq_vae", np.zeros((2, 4, 4, 1), int), "codes have shape (n, 4, 4, 1): they must be (n, 2, 2, 1)"),
        ("vq_vae", np.zeros((2, 2, 2), int), "codes have shape (n, 2, 2): they must be (n, 2, 2, 1)"),
        ("vq_vae", np.full((2, 2, 2, 1), 5), "codes have the value 5: they must be from 0 to 4"),
        ("vq_vae", np.full((2, 2, 2, 1), -1), "codes have the value -1: they must be from 0 to 4"),
        ("vq_vae", np.zeros((2, 2, 2, 1)), "codes are float64: they must be whole numbers, 0 to 4"),
    ],
)
def test_latents_that_a_model_cannot_decode(name, latents, words):
    label = 0 if name == "realnvp" else None
    assert words in mistake(lambda: untrained(name).decode(KEY, latents, label=label))


def test_no_images_are_one_line():
    gen = untrained("vae")
    assert "images have shape (0, 4, 4, 1)" in mistake(lambda: gen.encode(KEY, SOME[:0]))
    assert "images have shape (0, 4, 4, 1)" in mistake(lambda: gen.log_prob(KEY, SOME[:0]))
    arrays = {"image": SOME[:0], "index": np.arange(0), "label": np.arange(0)}
    assert "number of images is 0" in mistake(lambda: run_over(gen.model, "validate", gen.params, gen.ctx, KEY, arrays))


def mistake(call):
    """What the user is told, in one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sample_py_writes_a_grid_arrays_and_a_folder(run, gen, tmp_path, capsys):
    wanted = gen.sample(jax.random.key(3), 5, label=4, steps=2, start=1)
    shown = to_display(wanted, gen.model.images.levels)
    args = [str(run), "--num", "5", "--seed", "3", "--label", "4", "--steps", "2", "--start", "1", "--out"]
    assert sample.command([*args, str(tmp_path / "new" / "grid.png"), "--columns", "2", "--step", "best"]) == 0
    assert "5 images" in capsys.readouterr().out
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        assert grid.mode == "L" and grid.size == (2 * 50 + 2, 3 * 50 + 2)  # 8x8 enlarged six times, gaps of 2
        sheet = np.asarray(grid)
    for i in range(5):
        top, left = 2 + i // 2 * 50, 2 + i % 2 * 50
        np.testing.assert_array_equal(sheet[top : top + 48 : 6, left : left + 48 : 6], shown[i, ..., 0])

    assert sample.command([*args, str(tmp_path / "arrays.npz")]) == 0
    with np.load(tmp_path / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], wanted)
        assert arrays["levels"] == gen.model.images.levels
        np.testing.assert_array_equal(arrays["labels"], [4] * 5)

    assert sample.command([*args, str(tmp_path / "folder")]) == 0
    names = sorted(p.name for p in (tmp_path / "folder").glob("*.png"))
    assert names == [f"{i:06d}.png" for i in range(1, 6)]  # as --start says
    for i, name in enumerate(names):
        with Image.open(tmp_path / "folder" / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), shown[i, ..., 0])


def test_sample_py_without_the_average(run, tmp_path):
    samples = []
    for option in ("--ema", "--no-ema"):
        out = tmp_path / f"{option}.npz"
        assert sample.command([str(run), "--num", "3", "--seed", "3", option, "--out", str(out)]) == 0
        with np.load(out) as arrays:
            samples.append(arrays["images"])
    np.testing.assert_array_equal(samples[0], jgen.load(run).sample(KEY, 3))
    np.testing.assert_array_equal(samples[1], jgen.load(run, ema=False).sample(KEY, 3))
