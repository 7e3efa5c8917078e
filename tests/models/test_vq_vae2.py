"""VQ-VAE-2's autoencoder: the codes of both levels against NumPy, and the gradients that reach each encoder."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import data_of

from jgen.core import keys as rng
from jgen.core.model import Context, ImageSpec
from jgen.errors import UserError
from jgen.experiment import make_model
from jgen.models.vae import vq_vae2
from jgen.prob.codebook import centres

DATA = data_of(8, 8, 1, 256)
CONFIG = vq_vae2.Config((8,), (6,), blocks=1, num_codes=6, code_dim=3, commitment=0.7, decay=0.9, revival=0.0)
ENCODER, DECODER = vq_vae2.Encoder(CONFIG), vq_vae2.Decoder(CONFIG, 1)
KEYS = rng.image_keys(jax.random.key(0), jnp.arange(5))


@pytest.fixture(scope="module")
def parts():
    """The model, its parameters away from their start, where top codes reach nothing, a context and a batch."""
    model = vq_vae2.make(CONFIG, DATA)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)}
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return model, params, Context(jnp.int32(0), extra=extra), batch


def quantise(e, z):
    """Codes by NumPy, and their vectors."""
    codes = ((np.asarray(z)[..., None, :] - np.asarray(e)) ** 2).sum(-1).argmin(-1)
    return codes, jnp.asarray(np.asarray(e)[codes])


def by_hand(params, extra, image):
    """Codes, quantised vectors and encoder's vectors, each (top, bottom), level by level."""
    x = jnp.asarray(image / 127.5 - 1, jnp.float32)

    def call(name, *args):
        return jax.jit(lambda *args: ENCODER.apply({"params": params["encoder"]}, *args, method=name))(*args)

    h, z_t = call("top", x)
    k_t, e_t = quantise(centres(extra["top"]), z_t)
    z_b = call("bottom", h, e_t)
    k_b, e_b = quantise(centres(extra["bottom"]), z_b)
    return (k_t, k_b), (e_t, e_b), (z_t, z_b)


@pytest.mark.slow
def test_the_bottom_codes_are_those_of_what_the_top_codes_leave(parts):
    model, params, ctx, batch = parts
    codes, vectors, _ = by_hand(params, ctx.extra, batch["image"])
    top, bottom = jax.jit(lambda: model.encode(params, ctx, KEYS, batch["image"], {}))()
    assert model.codes == (ImageSpec(2, 2, 1, 6), ImageSpec(4, 4, 1, 6))
    np.testing.assert_array_equal(top[..., 0], codes[0])
    np.testing.assert_array_equal(bottom[..., 0], codes[1])
    assert top.dtype == bottom.dtype == jnp.int32 and len(np.unique(top)) > 1 and len(np.unique(bottom)) > 1
    images = np.asarray(jax.jit(lambda codes: model.decode(params, ctx, KEYS, codes, {}))((top, bottom)))
    x_hat = np.asarray(jax.jit(DECODER.apply)({"params": params["decoder"]}, *vectors))
    assert np.abs(images - np.clip(127.5 * (x_hat + 1), 0, 255)).max() <= 0.51
    mse = np.mean((x_hat - (batch["image"] / 127.5 - 1)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(jax.jit(model.validate)(params, ctx, KEYS, batch)["mse"], mse, rtol=1e-4)


@pytest.mark.slow
def test_gradients_pass_straight_through_both_levels(parts):
    """Those of the encoder, by hand from the decoder's and D_top's at the codes, and the commitments'."""
    model, params, ctx, batch = parts
    (loss, (metrics, _)), gradients = jax.jit(
        jax.value_and_grad(lambda p: model.phases[0].loss(p, ctx, KEYS, batch), has_aux=True)
    )(params)
    _, (e_t, e_b), (z_t, z_b) = by_hand(params, ctx.extra, batch["image"])
    x = jnp.asarray(batch["image"] / 127.5 - 1, jnp.float32)

    @jax.jit
    def backward(encoder):
        def error(e_t, e_b):
            return jnp.mean((DECODER.apply({"params": params["decoder"]}, e_t, e_b) - x) ** 2)

        to_top, to_bottom = jax.grad(error, (0, 1))(e_t, e_b)
        to_bottom += 0.7 * 2 * (z_b - e_b) / z_b.size
        (h, _), through_top = jax.vjp(lambda p: ENCODER.apply({"params": p}, x, method="top"), encoder)
        _, through_bottom = jax.vjp(
            lambda p, h, e: ENCODER.apply({"params": p}, h, e, method="bottom"), encoder, h, e_t
        )
        own, to_h, to_e = through_bottom(to_bottom)
        (below,) = through_top((to_h, to_top + to_e + 0.7 * 2 * (z_t - e_t) / z_t.size))
        return error(e_t, e_b), jnp.abs(to_e).max(), jax.tree.map(jnp.add, own, below)

    error, through_d_top, expected = backward(params["encoder"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6), gradients["encoder"], expected)
    assert through_d_top > 0
    commitments = [np.mean((z - e) ** 2) for z, e in ((z_t, e_t), (z_b, e_b))]
    np.testing.assert_allclose([metrics["commitment_top"], metrics["commitment_bottom"]], commitments, rtol=1e-4)
    assert float(loss) == pytest.approx(float(error + 0.7 * sum(commitments)), rel=1e-4)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_the_two_codebooks_follow_their_own_vectors(parts):
    model, params, ctx, batch = parts
    codes, _, vectors = by_hand(params, ctx.extra, batch["image"])
    _, (_, books) = jax.jit(model.phases[0].loss)(params, ctx, KEYS, batch)
    for level, code, z in zip(("top", "bottom"), codes, vectors):
        old, new = ctx.extra[level], books[level]
        count = np.bincount(code.ravel(), minlength=6) / code.size
        total = np.stack([np.asarray(z)[code == j].sum(0) for j in range(6)]) / code.size
        np.testing.assert_allclose(new["count"], 0.9 * old["count"] + 0.1 * count, rtol=1e-5)
        np.testing.assert_allclose(new["sum"], 0.9 * old["sum"] + 0.1 * total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"top_widths": ()}, "top_widths is ()"),
        ({"top_widths": (8, 8, 8)}, "images are 8x8: 4 convolutional widths need sizes divisible by 16"),
        ({"revival": 1.0}, "revival is 1.0"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        make_model(replace(CONFIG, **options), DATA)
    assert words in str(caught.value)


def test_codes_that_are_no_pair_are_one_line(parts):
    model, params, ctx, _ = parts
    top, bottom = np.zeros((1, 2, 2, 1), int), np.zeros((1, 4, 4, 1), int)
    for codes, words in (
        (bottom, "codes are a ndarray: they must be the pair"),
        ((bottom, top), r"top codes have shape \(n, 4, 4, 1\): they must be \(n, 2, 2, 1\)"),
    ):
        with pytest.raises(UserError, match=words):
            model.decode(params, ctx, KEYS, codes, {})
