"""ADA's transformations: exact on a test card one by one, none at p = 0, as often as p says, and differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import data_of

from jgen.core import keys as rng
from jgen.errors import UserError
from jgen.nn import adaptive_augmentation as ada
from jgen.nn.augmentation import warp

CARD = np.random.default_rng(0).uniform(-1, 1, (8, 8, 3)).astype(np.float32)
KEYS = rng.image_keys(jax.random.key(3), jnp.arange(400))


def warped(x=CARD, **transformations):
    return np.asarray(warp(jnp.asarray(x), ada.compose(**transformations)))


@pytest.mark.parametrize(
    "transformations,expected",
    [
        ({}, CARD),
        ({"mirror": 1.0}, CARD[:, ::-1]),
        *[({"quarters": float(k)}, np.rot90(CARD, k)) for k in (1, 2, 3)],
        ({"angle": -np.pi / 2}, np.rot90(CARD, 3)),
        ({"angle": 0.7, "angle2": -0.7}, CARD),
    ],
)
def test_each_transformation_on_a_test_card(transformations, expected):
    image = warped(**transformations)
    turned = np.rot90(np.asarray(expected), 2)
    if "angle" in transformations or transformations.get("quarters", 0) % 2:  # either sense of turning is as good
        assert min(np.abs(image - expected).max(), np.abs(image - turned).max()) < 1e-4
    else:
        np.testing.assert_allclose(image, expected, atol=1e-5)


def test_movements_scale_and_stretching():
    down, right = warped(whole=np.array([1 / 8, 0.0])), warped(shift=np.array([0.0, 2 / 8]))
    np.testing.assert_allclose(down[1:], CARD[:-1], atol=1e-5)
    np.testing.assert_allclose(right[:, 2:], CARD[:, :-2], atol=1e-5)
    # A ramp shows by how much: linear in the position, so that linear interpolation is exact inside.
    position = np.linspace(-7 / 8, 7 / 8, 8, dtype=np.float32)
    across = np.broadcast_to(position[None, :, None], (8, 8, 1))
    inside = slice(2, 6)
    np.testing.assert_allclose(warped(across, scale=1.25)[:, inside], 1.25 * across[:, inside], atol=1e-5)
    np.testing.assert_allclose(warped(across, stretch=1.25)[:, inside], 1.25 * across[:, inside], atol=1e-5)
    upright = across.transpose(1, 0, 2)
    np.testing.assert_allclose(warped(upright, stretch=1.25)[inside], upright[inside] / 1.25, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_is_done_at_p_0_and_much_at_p_1(channels):
    x = jnp.broadcast_to(jnp.asarray(CARD[None, :, :, :channels]), (400, 8, 8, channels))
    augment = jax.jit(ada.augment)
    np.testing.assert_allclose(augment(KEYS, x, 0.0), x, atol=1e-5)
    changed = [np.abs(np.asarray(augment(KEYS, x, p)) - x).reshape(400, -1).max(axis=1) > 1e-3 for p in (0.05, 1.0)]
    # At p an image is left alone if none of its transformations changes it: with 1 - p each, half of mirrors and flips
    # of luma, a quarter of the turns and some of the whole shifts besides.
    always = 1 - (1 - 0.05) ** (7 if channels == 1 else 9) * (1 - 0.025) ** 2 * (1 - 0.0375)
    assert changed[1].all() and abs(changed[0].mean() - always) < 4 * np.sqrt(always * (1 - always) / 400) + 0.02


def test_colours_of_grey_and_of_three_channels():
    def grey(key, p):
        return ada.recolour(key, jnp.asarray(CARD[:, :, :1]), p)[:, :, 0]

    y = np.asarray(jax.jit(jax.vmap(grey, (0, None)))(KEYS, 1.0)).reshape(400, -1)
    x = CARD[:, :, 0].ravel()
    slope = (y @ (x - x.mean())) / np.sum((x - x.mean()) ** 2)
    offset = y.mean(axis=1) - slope * x.mean()
    np.testing.assert_allclose(
        y, slope[:, None] * x + offset[:, None], atol=1e-4
    )  # brightness, contrast and luma alone
    assert abs(np.mean(slope < 0) - 0.5) < 0.1
    assert abs(np.std(np.log2(np.abs(slope))) - ada.CONTRAST_STD) < 0.1
    assert abs(np.std(offset / slope) - ada.BRIGHTNESS_STD) < 0.05
    colours = np.asarray(jax.jit(jax.vmap(lambda key: ada.recolour(key, jnp.asarray(CARD), 1.0)))(KEYS[:50]))
    # Luma is changed by brightness, contrast and flips, never by hue and saturation.
    luma, wanted = colours.mean(axis=-1).reshape(50, -1), CARD.mean(axis=-1).ravel()
    for row in luma:
        assert abs(np.corrcoef(row, wanted)[0, 1]) > 1 - 1e-4


def test_gradients_pass_through_it():
    """The transformation is affine in the image: <w, A v> = <A^T w, v>."""
    draw = np.random.default_rng(1).standard_normal
    x, v, w = (jnp.asarray(draw((6, 8, 8, 1)), jnp.float32) for _ in range(3))
    change = jax.jit(lambda x: ada.augment(KEYS[:6], x, 0.8))
    forward = change(x + v) - change(x)
    (backward,) = jax.vjp(change, x)[1](w)
    np.testing.assert_allclose(jnp.vdot(w, forward), jnp.vdot(backward, v), rtol=1e-4)


def test_images_that_cannot_be_turned():
    ada.require_augmentable(data_of(8, 8, 3, 256).image, "ada_target")
    for shape in ((8, 4, 1), (8, 8, 2)):
        with pytest.raises(UserError, match="ada_target above 0 needs square ones of one channel or three"):
            ada.require_augmentable(data_of(*shape, 256).image, "ada_target")
