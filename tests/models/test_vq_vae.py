"""The VQ-VAE against NumPy and by hand: its gradient, its codebook over steps, its codes; bad options.

The codebook's own functions: tests/prob/test_codebook.py.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context, ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import vq_vae
from jgen.prob.codebook import centres

DATA = data_of(8, 8, 1, 256)
CONFIG = vq_vae.Config(widths=(8,), blocks=1, num_codes=6, code_dim=3, decay=0.9, revival=0.0)


def keys_of(n, seed=0):
    return rng.image_keys(jax.random.key(seed), jnp.arange(n))


def make_parts(**options):
    model = vq_vae.make(replace(CONFIG, **options), DATA)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    return model, params, Context(jnp.int32(0), extra=extra), batch


@pytest.mark.slow
def test_the_encoders_gradient_is_the_decoders_at_the_codes_and_the_commitments():
    model, params, ctx, batch = make_parts(commitment=0.7)
    loss, gradients = jax.jit(jax.value_and_grad(lambda p: model.phases[0].loss(p, ctx, keys_of(5), batch)[0]))(params)
    encoder, decoder = vq_vae.Encoder(replace(CONFIG, commitment=0.7)), vq_vae.Decoder(CONFIG, 1)
    x = batch["image"] / 127.5 - 1
    encode = jax.jit(lambda p: encoder.apply({"params": p}, jnp.asarray(x, jnp.float32)))
    z_e, back = jax.vjp(encode, params["encoder"])
    e = np.asarray(ctx.extra["codebook"]["sum"]) / np.asarray(ctx.extra["codebook"]["count"])[:, None]
    z_q = jnp.asarray(e[((np.asarray(z_e)[..., None, :] - e) ** 2).sum(-1).argmin(-1)])
    error = jax.jit(lambda z: jnp.mean((decoder.apply({"params": params["decoder"]}, z) - x) ** 2))
    by_hand = jax.grad(error)(z_q) + 0.7 * 2 * (z_e - z_q) / z_e.size
    expected = back(by_hand)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients["encoder"], expected)
    assert float(loss) == pytest.approx(float(error(z_q) + 0.7 * np.mean((z_e - z_q) ** 2)), rel=1e-5)


def test_the_codebook_follows_its_averages_over_steps():
    """Three steps against NumPy, from the vectors that the encoder gives."""
    model, params, ctx, batch = make_parts()
    book = {name: np.asarray(value, np.float64) for name, value in ctx.extra["codebook"].items()}
    encode = jax.jit(vq_vae.Encoder(CONFIG).apply)
    z = np.asarray(encode({"params": params["encoder"]}, batch["image"] / 127.5 - 1.0))
    z = z.reshape(-1, 3).astype(np.float64)
    extra = ctx.extra
    step = jax.jit(lambda extra, keys: model.phases[0].loss(params, ctx._replace(extra=extra), keys, batch)[1])
    for seed in range(3):
        metrics, extra = step(extra, keys_of(5, seed))
        e = book["sum"] / book["count"][:, None]
        p = book["use"] / book["use"].sum()
        assert float(metrics["perplexity"]) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
        code = ((z[:, None] - e) ** 2).sum(-1).argmin(1)
        for j in range(6):
            for name in ("count", "use"):
                book[name][j] = 0.9 * book[name][j] + 0.1 * np.mean(code == j)
            book["sum"][j] = 0.9 * book["sum"][j] + 0.1 * z[code == j].sum(0) / len(z)
        for name in ("count", "sum", "use"):
            np.testing.assert_allclose(extra["codebook"][name], book[name], rtol=1e-4, atol=1e-6)


def test_the_start_is_at_encoded_vectors():
    model, params, ctx, batch = make_parts()
    encode = jax.jit(vq_vae.Encoder(CONFIG).apply)
    z = encode({"params": params["encoder"]}, batch["image"] / 127.5 - 1.0).reshape(-1, 3)
    gap = np.abs(np.asarray(centres(ctx.extra["codebook"]))[:, None] - np.asarray(z)[None]).max(-1).min(1)
    assert gap.max() < 1e-5


def test_codes_are_what_their_specification_says_and_decode_to_the_reconstruction():
    model, params, ctx, batch = make_parts()
    codes = jax.jit(lambda: model.encode(params, ctx, keys_of(5), batch["image"], {}))()
    assert model.codes == (ImageSpec(4, 4, 1, 6),)
    assert codes.shape == (5, 4, 4, 1) and codes.dtype == jnp.int32
    assert codes.min() >= 0 and codes.max() < 6
    images = np.asarray(jax.jit(lambda codes: model.decode(params, ctx, keys_of(5), codes, {}))(codes))
    assert images.dtype == np.uint8 and images.shape == (5, 8, 8, 1)
    mse = np.mean(np.square((images - batch["image"].astype(np.float64)) / 127.5), axis=(1, 2, 3))
    scores = jax.jit(model.validate)(params, ctx, keys_of(5), batch)
    np.testing.assert_allclose(scores["mse"], mse, rtol=0.03)


def test_sampled_codes_are_as_frequent_as_asked_for():
    """Images of one code each, told apart by what the codes decode to: chi-square against the counts."""
    model = vq_vae.make(CONFIG, data_of(2, 2, 1, 256))
    batch = {"image": np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    used = np.array([0.5, 0.3, 0.15, 0.05, 0.0, 0.0])
    vectors = 3 * jax.random.normal(jax.random.key(2), (6, 3))
    even = jnp.full(6, 1 / 6)
    book = {**extra["codebook"], "count": even, "sum": vectors * even[:, None], "use": jnp.maximum(used, 1e-12)}
    ctx = Context(jnp.int32(0), extra={"codebook": book})
    decode = jax.jit(lambda codes: model.decode(params, ctx, None, codes, {}))
    shown = np.asarray(decode(jnp.arange(6).reshape(6, 1, 1, 1))).reshape(6, 4)
    assert len(np.unique(shown, axis=0)) == 6
    n = 4000
    for codes, p in (("used", used), ("uniform", np.full(6, 1 / 6))):
        drawn = np.asarray(jax.jit(functools.partial(model.sample, params, ctx, cond={}, codes=codes))(keys=keys_of(n)))
        same = np.all(drawn.reshape(n, 1, 4) == shown, axis=2)
        assert np.all(same.sum(1) == 1)
        counts, possible = same.sum(0), p > 0
        assert counts[~possible].sum() == 0
        assert scipy.stats.chisquare(counts[possible], n * p[possible]).pvalue > 1e-3


@pytest.mark.parametrize("revival,usage,revived", [(0.3, 4 / 6, 2), (0.9, 3 / 6, 3), (0.0, 5 / 6, 0)])
def test_usage_and_revival_by_hand(revival, usage, revived):
    """A share is 1/6: a code below `revival` / 6 is moved where it is offered a vector.

    What is reported is of `use`, which being moved does not raise.
    """
    model, params, ctx, batch = make_parts(revival=revival)
    count = jnp.array([0.5, 0.3, 0.1, 0.04, 0.03, 0.0])
    use = jnp.array([0.4, 0.2, 0.06, 0.16, 0.02, 0.0])
    offered = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    book = {
        **ctx.extra["codebook"],
        "count": count,
        "use": use,
        "offer_weight": offered,
        "offer_sum": jnp.ones((6, 3)),
    }
    metrics = jax.jit(model.phases[0].loss)(params, ctx._replace(extra={"codebook": book}), keys_of(5), batch)[1][0]
    assert float(metrics["usage"]) == pytest.approx(usage) and float(metrics["revived"]) == revived
    p = np.asarray(use)[:5] / np.sum(use)
    assert float(metrics["perplexity"]) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-5)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"code_dim": 0}, "code_dim is 0"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"revival": -0.1}, "revival is -0.1"),
        ({"commitment": -1.0}, "commitment is -1.0"),
        ({"sampling": vq_vae.Sampling(codes="odd")}, "codes is 'odd': it must be one of used, uniform"),
        ({"widths": (8, 8, 8, 8)}, "images are 8x8: 4 convolutional widths need sizes divisible by 16"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(CONFIG, **options), DATA)
    assert words in str(caught.value)
