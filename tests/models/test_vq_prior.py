"""The prior over codes: its images are decoded codes, with the probabilities that it gives; its frozen autoencoder."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import data_of

import jgen
import sample
import train
from jgen import evaluate, figures
from jgen.core import keys as rng
from jgen.core.model import Context, FrozenModel, GenerativeModel, ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import vae, vq_prior

DATA = data_of(1, 2, 1, 256, num_classes=2)
LEVELS = 3
CONFIG = vq_prior.Config(features=6, blocks=1, first_kernel=3, hidden=6, embedding=4)


def encode(params, ctx, keys, x, cond):
    return (x // 100).astype(jnp.int32) + params["add"]


def decode(params, ctx, keys, codes, cond):
    return ((codes - params["add"]) * 100).astype(jnp.uint8)


def make_autoencoder(num_grids=1):
    """An autoencoder whose codes are its pixels divided by 100: 0, 1 and 2 for the values 0, 100 and 200."""
    codes = (ImageSpec(1, 2, 1, LEVELS),) * num_grids
    return GenerativeModel("hundreds", DATA, None, (), encode=encode, decode=decode, codes=codes)


def frozen_with(add):
    return {"autoencoder": FrozenModel({"add": jnp.int32(add)}, {})}


def make_prior():
    model = vq_prior.make(CONFIG, DATA, autoencoder=make_autoencoder())
    batch = {"image": np.zeros((2, 1, 2, 1), np.uint8), "label": np.array([0, 1], np.int32)}
    params, _ = jax.jit(model.init)(jax.random.key(0), batch, frozen_with(0))
    params = jax.tree.map(lambda x: x + 0.5 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return model, params, Context(jnp.int32(0), frozen=frozen_with(0))


@pytest.mark.slow
def test_decoded_samples_are_as_frequent_as_their_codes_are_likely():
    """All 9 images of 1x2 codes, for each class: `validate` sums to 1, and sampling agrees (chi-square)."""
    model, params, ctx = make_prior()
    pairs = np.stack(np.meshgrid(*[np.arange(LEVELS)] * 2, indexing="ij"), -1).reshape(-1, 1, 2, 1)
    draw = jax.jit(lambda keys, cond: model.sample(params, ctx, keys, cond))
    score = jax.jit(lambda keys, batch: model.validate(params, ctx, keys, batch))
    by_class = []
    for label in (0, 1):
        batch = {"image": (pairs * 100).astype(np.uint8), "label": np.full(9, label, np.int32)}
        scores = score(rng.image_keys(jax.random.key(0), jnp.arange(9)), batch)
        p = np.exp(-np.asarray(scores["nll_codes"], np.float64))
        np.testing.assert_allclose(p.sum(), 1.0, atol=1e-5)
        np.testing.assert_allclose(scores["bits_per_code"], -np.log2(p) / 2, rtol=1e-4)
        n = 4000
        images = np.asarray(draw(rng.image_keys(jax.random.key(3), jnp.arange(n)), {"label": jnp.full(n, label)}))
        assert images.dtype == np.uint8 and set(np.unique(images)) <= {0, 100, 200}
        counts = np.bincount((images.reshape(n, 2) // 100) @ np.array([3, 1]), minlength=9)
        assert scipy.stats.chisquare(counts, p / p.sum() * n).pvalue > 1e-4
        by_class.append(p)
    assert np.abs(by_class[0] - by_class[1]).sum() > 0.05


@pytest.mark.slow
def test_the_loss_is_the_mean_over_codes_and_reads_the_frozen_parameters():
    model, params, ctx = make_prior()
    batch = {"image": np.array([0, 100, 100, 0], np.uint8).reshape(2, 1, 2, 1), "label": np.array([0, 1], np.int32)}
    keys = rng.image_keys(jax.random.key(0), jnp.arange(2))

    @jax.jit
    def run(ctx):
        return model.phases[0].loss(params, ctx, keys, batch)[0], model.validate(params, ctx, keys, batch)

    loss, scores = run(ctx)
    assert float(loss) == pytest.approx(float(scores["nll_codes"].mean()) / 2)
    other = ctx._replace(frozen=frozen_with(1))
    assert float(run(other)[0]) != pytest.approx(float(loss), rel=1e-3)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"features": 0}, "features is 0"),
        ({"embedding": 0}, "embedding is 0"),
        ({"first_kernel": 4}, "first_kernel is 4"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"sampling": vq_prior.Sampling(temperature=0.0)}, "temperature is 0.0"),
        ({"sampling": vq_prior.Sampling(temperature=float("inf"))}, "finite: set --model.sampling.temperature"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(CONFIG, **options), DATA, {"autoencoder": make_autoencoder()})
    assert words in str(caught.value)


def test_an_autoencoder_that_cannot_serve_is_a_mistake():
    continuous = vae.make(vae.Config(network="dense", widths=(4,), latent=2), DATA)
    by_class = make_autoencoder()._replace(conditions=("label",))
    for config, data, autoencoder, message in (
        (CONFIG, DATA, continuous, "frozen.autoencoder is a vae, which has no grids of discrete codes"),
        (CONFIG, DATA, make_autoencoder(2), "frozen.autoencoder is a hundreds, which has 2 grids of discrete codes"),
        (CONFIG, data_of(1, 2, 1, 17, 2), make_autoencoder(), "frozen.autoencoder was trained on"),
        (CONFIG, data_of(1, 2, 1, 256), make_autoencoder(), "class_conditional is True, but the data has no labels"),
        (replace(CONFIG, class_conditional=False), DATA, by_class, "needs the class to decode"),
    ):
        with pytest.raises(UserError, match=message):
            make_model(config, data, {"autoencoder": autoencoder})
    with pytest.raises(UserError, match="frozen.autoencoder is missing"):
        make_model(CONFIG, DATA)


def assert_same_parameters(a, b):
    """Of two generators, with those of their frozen models."""
    both = ((gen.params, gen.ctx.frozen) for gen in (a, b))
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.slow
def test_two_runs_make_images_and_a_changed_autoencoder_is_noticed(cache, tmp_path, monkeypatch, capsys):
    quick = ["--train.validate-every", "0", "--train.sample-every", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    prior = ["configs/vae/vq_prior.py:tiny", "--train.steps", "1", *quick, "--frozen.autoencoder", str(first)]
    with pytest.raises(UserError, match="there is no run at .*first: train the autoencoder before"):
        train.command([*prior, "--workdir", str(second)])
    assert not second.exists()
    code = ["configs/vae/vq_vae.py:tiny", "--workdir", str(first), *quick, "--train.steps"]
    assert train.command([*code, "1"]) == 0
    assert train.command([*prior, "--workdir", str(second)]) == 0
    with pytest.raises(UserError, match="vq_vae has no likelihood, and no samples were asked for"):
        evaluate.command([str(first), "--samples", "0"])
    assert evaluate.command([str(first), "--samples", "0", "--reconstruct", "--num", "60"]) == 0
    scored = json.loads((first / "evaluation.json").read_text())
    assert scored["likelihood"] is None and "quality" not in scored and scored["reconstruction"]["num"] == 60
    assert scored["reconstruction"]["quality"]["num"] == scored["reconstruction"]["labels"]["num"] == 60
    mse = scored["reconstruction"]["mse"]
    message = f"reconstructions of 60 test images: mean squared error {mse:.5f}, rFD-digits-"
    assert message in capsys.readouterr().out
    gen = jgen.load(second)
    images = gen.sample(jax.random.key(0), 4, label=3)
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.uint8

    # Moved together, and loaded from another folder: the autoencoder is beside the run.
    moved, apart = tmp_path / "moved", tmp_path / "apart"
    moved.mkdir()
    first.rename(moved / "first")
    second.rename(moved / "second")
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(moved)
        assert_same_parameters(jgen.load("second"), gen)
    (moved / "first").rename(apart)
    message = f"{first}, which is .* nor at {moved / 'first'}: .*--frozen.autoencoder"
    with pytest.raises(UserError, match=message) as caught:
        jgen.load(moved / "second")
    assert "jgen.load(" in str(caught.value) and "\n" not in str(caught.value)
    assert_same_parameters(jgen.load(moved / "second", frozen={"autoencoder": apart}), gen)
    with pytest.raises(UserError, match=f"there is no run at {tmp_path / 'none'}"):
        jgen.load(moved / "second", frozen={"autoencoder": tmp_path / "none"})
    with pytest.raises(UserError, match="frozen has 'teacher', which .* does not take: it takes autoencoder"):
        jgen.load(moved / "second", frozen={"teacher": apart})
    grid = ["--out", str(tmp_path / "x.png")]
    for command, words in ((sample.command, grid), (evaluate.command, []), (figures.command, grid)):
        with pytest.raises(UserError, match=f"there is no run at {tmp_path / 'none'}"):
            command([str(moved / "second"), *words, "--frozen.autoencoder", str(tmp_path / "none")])
    assert sample.command([str(moved / "second"), "--num", "4", *grid, "--frozen.autoencoder", str(apart)]) == 0
    assert (tmp_path / "x.png").stat().st_size > 0
    apart.rename(first)
    (moved / "second").rename(second)

    # The autoencoder is trained further: the prior takes its older checkpoint, as long as that is there.
    assert train.command([*code, "2"]) == 0
    assert_same_parameters(jgen.load(second), gen)
    assert train.command([*prior[:2], "2", *prior[3:], "--workdir", str(second)]) == 0
    assert jgen.load(second).step == 2
    shutil.rmtree(first / "checkpoints" / "1")
    with pytest.raises(UserError, match="has changed since"):
        jgen.load(second)
    with pytest.raises(UserError, match="the hash of frozen autoencoder was .*, is "):
        train.command([*prior[:2], "3", *prior[3:], "--workdir", str(second)])
