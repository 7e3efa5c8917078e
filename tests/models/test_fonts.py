"""Few-shot fonts: style glyphs are a set, absent ones have no part, content glyphs are means, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import make_batch

from jgen.core.generate import run_over
from jgen.core.model import ArraySpec, Context, DataSpec, ImageSpec
from jgen.data.fonts import LETTERS
from jgen.data.style import style_fields
from jgen.errors import UserError
from jgen.models.diffusion import flow_matching
from jgen.models.text_to_image import fonts
from jgen.nn import unet
from jgen.samplers.diffusion import Sampling

MOST, ABSENT = 4, len(LETTERS)
IMAGE = ImageSpec(8, 8, 1, 256)
DATA = DataSpec(IMAGE, {"label": ArraySpec((), "int32", ABSENT, tuple(LETTERS)), **style_fields(MOST, IMAGE)})
NETWORK = dataclasses.replace(unet.TINY, attention=(4,), dropout=0.0)
FLOW = flow_matching.Config(network=NETWORK, sampling=Sampling(sampler="euler", steps=2))
CONFIG = fonts.Config(FLOW, style_channels=(8, 8), style_width=8, style_groups=1)


@pytest.fixture(scope="module")
def trained():
    """A model, weights that are not zero anywhere, and some batch."""
    model = fonts.make(CONFIG, DATA)
    batch = make_batch(model, 3)
    batch["style_label"] = np.array([[3, 9, ABSENT, ABSENT], [51, 0, 7, 20], [8, ABSENT, ABSENT, ABSENT]], np.int32)
    params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
    params = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return model, params, extra, batch


@pytest.fixture(scope="module")
def denoise(trained):
    model, params, extra, batch = trained
    x_t, t = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 8, 8, 1), jnp.full(3, 0.6)
    function = jax.jit(lambda cond: model.functions["denoise"](params, Context(0, None, params, extra), x_t, t, cond))
    return lambda **changes: np.asarray(function(model.condition({**batch, **changes})))


@pytest.mark.slow
def test_the_order_of_style_glyphs_does_not_matter(trained, denoise):
    batch, before = trained[-1], denoise()
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        moved = {name: batch[name][:, order] for name in ("style", "style_label")}
        np.testing.assert_allclose(denoise(**moved), before, atol=2e-5)
    unlike = {"style": batch["style"][:, [1, 0, 2, 3]]}  # pictures without their labels: another set
    assert np.abs(denoise(**unlike) - before).max() > 1e-3


def test_absent_glyphs_have_no_part(trained, denoise):
    batch, before = trained[-1], denoise()
    absent = batch["style_label"] == ABSENT
    other = np.where(absent[..., None, None, None], 255 - batch["style"], batch["style"])
    np.testing.assert_array_equal(denoise(style=other), before)
    shown = np.where(absent[..., None, None, None], batch["style"], 255 - batch["style"])
    assert np.abs(denoise(style=shown) - before).max(axis=(1, 2, 3)).min() > 1e-3


def test_fewer_places_are_the_same_model(trained, denoise):
    """A model of two places has the parameters of one of four, and draws the same."""
    _, params, extra, batch = trained
    small = fonts.make(CONFIG, DataSpec(IMAGE, {**DATA.fields, **style_fields(2, IMAGE)}))
    rows = np.array([0, 2])
    cond = {"label": batch["label"][rows], **{name: batch[name][rows, :2] for name in fonts.STYLE}}
    x_t = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 8, 8, 1)[rows]
    ctx = Context(0, None, params, extra)
    answer = jax.jit(lambda cond: small.functions["denoise"](params, ctx, x_t, jnp.full(2, 0.6), cond))(cond)
    np.testing.assert_allclose(answer, denoise()[rows], atol=2e-5)


def test_content_glyphs_are_the_means_of_letters():
    content = {"sums": jnp.zeros((3, 2, 2, 1)), "shares": jnp.zeros(3)}
    rng, images, labels = np.random.default_rng(0), [], []
    for _ in range(5):
        batch = {"image": rng.integers(0, 256, (6, 2, 2, 1)).astype(np.uint8), "label": rng.integers(0, 2, 6)}
        content = fonts.updated_content(content, batch)
        images, labels = [*images, batch["image"]], [*labels, batch["label"]]
    ages = np.repeat(np.arange(5)[::-1], 6)
    weights, image, label = fonts.DECAY**ages, np.concatenate(images), np.concatenate(labels)
    for letter in (0, 1):
        mean = np.average(image[label == letter], axis=0, weights=weights[label == letter])
        np.testing.assert_allclose(content["sums"][letter] / content["shares"][letter], mean, rtol=1e-4)
    assert content["shares"][2] == 0


@pytest.mark.slow
def test_the_content_glyph_is_what_the_network_sees(trained):
    model, params, extra, batch = trained
    system = model.init.args[0]
    means = {"sums": jnp.arange(52.0)[:, None, None, None] * jnp.ones((52, 8, 8, 1)), "shares": jnp.full(52, 0.5)}
    given = fonts.with_context(system, params, {"content": means}, model.condition(batch))
    np.testing.assert_allclose(given["low_resolution"][:, 0, 0, 0], 2.0 * batch["label"])
    assert not set(fonts.STYLE) & set(given) and set(model.conditions) == {"label", "style", "style_label"}
    none, tokens = given["negative_context"], given["context"]
    assert none.mask.sum(axis=1).tolist() == [1, 1, 1]
    assert tokens.mask.sum(axis=1).tolist() == [3, 5, 2]  # each has one, and there is the learned one


@pytest.mark.slow
def test_no_style_glyph_is_one_line(trained):
    model, params, extra, batch = trained
    cond = model.condition(batch) | {"style_label": np.full((3, MOST), ABSENT, np.int32)}
    cond["style_label"][0, 0] = 3
    arrays = {"index": np.arange(3, dtype=np.int32), "cond": cond}
    with pytest.raises(UserError, match="^images 1, 2 failed: there is no style glyph[^\n]*$"):
        run_over(model, "sample", params, Context(0, None, params, extra), jax.random.key(0), arrays,
                 options=model.sampling)  # fmt: skip


@pytest.mark.parametrize("config,fields,words", [
    ({}, {"label": DATA.fields["label"]}, "the data has no field style, it has label: use fonts, with --data.style 30"),
    ({"objective": dataclasses.replace(FLOW, class_conditional=False)}, {}, "objective.class_conditional is False"),
    ({"style_channels": (4, 6), "style_groups": 4}, {}, r"style_channels are \(4, 6\): each must be divisible by"),
    ({"style_channels": (4, 4, 4)}, {}, "style glyphs are 8x8: 3 style_channels need sides divisible by 16"),
    ({"style_width": 0}, {}, "style_width is 0: it must be above zero"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(config, fields, words):
    with pytest.raises(UserError, match=f"^{words}[^\n]*$"):
        fonts.make(dataclasses.replace(CONFIG, **config), DataSpec(IMAGE, fields or DATA.fields))
