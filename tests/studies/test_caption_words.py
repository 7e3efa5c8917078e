"""Which words a text-to-image diffusion reads: known denoisers, words replaced, what it cannot be asked of."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mistake

from jgen.core.model import Context
from jgen.data.shapes import COLOURS, SHAPES, SIZES
from jgen.prob.process import edm
from jgen.studies import caption_words
from jgen.studies.caption_words import ATTRIBUTES, command, denoising_errors, draw, measure, replace_words, table

CAPTION = "a small red circle above a huge blue box and left of a tiny red circle"


@pytest.mark.parametrize("name,values", [("shape", SHAPES), ("colour", COLOURS), ("size", SIZES)])
def test_words_become_those_of_other_values_and_all_else_stays(name, values):
    value_of = {word: number for number, value in enumerate(values) for word in value}
    seen = set()
    for seed in range(60):
        words = replace_words(CAPTION, ATTRIBUTES[name], seed).split()
        for before, after in zip(CAPTION.split(), words, strict=True):
            if before in value_of:
                assert value_of[after] != value_of[before]
                seen.add(after)
            else:
                assert after == before
    assert replace_words(CAPTION, values, 3) == replace_words(CAPTION, values, 3)
    assert seen >= {word for word in value_of} - {"red", "crimson"}  # each of the others is drawn at some seed


class Words:
    """A tokenizer whose token of a caption is the number of its circles."""

    def encode(self, text):
        return np.array([text.split().count("circle")], np.int32)

    def decode(self, ids):
        return " ".join(["circle"] * int(ids[0]) + ["red"])


def generator():
    """A denoiser that answers a grey of its token, and sees images of that grey."""

    def denoise(params, ctx, x_t, t, cond):
        return jnp.zeros_like(x_t) + params + cond["text"][:, :, None, None] * 0.25

    functions = {"denoise": denoise, "process": lambda params, ctx: edm(10.0)}
    model = SimpleNamespace(functions=functions, images=SimpleNamespace(levels=5), name="grey", conditions=("text",))
    data = SimpleNamespace(name="shapes")
    return SimpleNamespace(
        model=model,
        params=jnp.float32(-1.0),
        ctx=Context(jnp.int32(0)),
        tokenizers={"text": Words()},
        config=SimpleNamespace(data=data),
    )


def test_errors_are_those_of_the_denoised_images(monkeypatch):
    monkeypatch.setattr(caption_words, "AT_ONCE", 4)
    images = np.array([0, 1, 2, 3, 4], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    tokens = np.array([0, 1, 2, 3, 4], np.int32)[:, None]
    low, high = denoising_errors(generator(), images, (2 * tokens, 2 * tokens[::-1]), [3.0, 5.0], 0)
    np.testing.assert_array_equal(low, high)  # this denoiser does not look at the noise
    true, wrong = low
    np.testing.assert_allclose(true, 0.0, atol=1e-12)  # levels 0 .. 4 are -1, -1/2, ..., 1
    np.testing.assert_allclose(wrong, [4.0, 1.0, 0.0, 1.0, 4.0], atol=1e-6)


def test_the_rise_is_that_of_the_words_that_count(monkeypatch, tmp_path):
    texts = np.array([[0], [1], [2], [1]], np.int32)
    images = np.full((4, 2, 2, 1), 3, np.uint8)  # 0.5, where the denoiser says -1 + token / 4
    data = SimpleNamespace(splits={"test": SimpleNamespace(fetch=lambda at: {"image": images[at], "text": texts[at]})})
    monkeypatch.setattr("jgen.data.dataset.reopen", lambda *options: (None, data))
    monkeypatch.setattr("jgen.train.run_directory.read_config", lambda run: {"data_fingerprint": ""})
    where = {
        "run": "runs/grey",
        "system": "grey",
        "step": 1,
        "samples": 4,
        "seed": 0,
        "split": "test",
        "noise": [1.0, 2.0],
    }
    gen = generator()
    colour, shape = ({**where, "attribute": name} for name in ("colour", "shape"))
    assert measure(colour, gen) == {"rise": [0.0, 0.0], "standard_error": [0.0, 0.0]}
    row = measure(shape, gen)  # no circle is left: the error is that of token 0, 1.5^2
    errors = (1.5 - 0.25 * texts[:, 0]) ** 2
    change = 1.5**2 - errors
    np.testing.assert_allclose(row["rise"], 100 * change.mean() / errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(row["standard_error"], 100 * change.std(ddof=1) / 2 / errors.mean(), rtol=1e-5)
    rows = [{"setting": shape, **row}, {"setting": colour, "rise": [0.0, 0.0], "standard_error": [0.0, 0.0]}]
    assert "| grey, 1 | colour | 0.00 ± 0.00 | 0.00 ± 0.00 |" in table(rows)
    draw(tmp_path / "x.png", rows)
    assert (tmp_path / "x.png").stat().st_size > 0


def test_what_it_cannot_be_asked_of(tiny_run, tmp_path):
    mistake(lambda: command(["--out", str(tmp_path)]), "which runs?")
    mistake(lambda: command([str(tiny_run), "--out", str(tmp_path)]), "trained on digits", "must be shapes")
    mistake(lambda: command(["x", "--noise", "-1", "--out", str(tmp_path)]), "--noise is")
    unread = generator()
    unread.model.conditions = ()
    mistake(lambda: caption_words.check_run("x", unread), "x is a grey: it must be a diffusion conditioned on text")
