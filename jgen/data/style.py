"""Letters of an example's own font beside it: what a model of few-shot font generation sees of a style.

A set of letters is two fields: `style`, uint8 (K, H, W, C), and `style_label`, int32 (K,), which letter each is. It may
have fewer than K letters: the places after the last have the label `absent`, and pictures without meaning.

For an example the number k of letters is drawn so that p(k) = ln((k + 1) / k) / ln(K + 1), k = 1 .. K, about as often
from 1 to 2 as from 3 to 6; then k letters, none of them its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jgen.core import keys as rng
from jgen.core.model import ArraySpec, Batch, ImageSpec
from jgen.data.fonts import LETTERS
from jgen.errors import require

SIBLINGS = "siblings"  # all letters of an example's font, uint8 (B, letters, H, W, C), which `draw_style` chooses from
ABSENT = "absent"  # the name of the label of a place without a letter


def style_fields(most: int, image: ImageSpec) -> dict[str, ArraySpec]:
    """The fields of at most so many letters. Raises `UserError` for as many as a font has, or more."""
    others = len(LETTERS) - 1
    require(most <= others, f"data.style is {most}: a font has {others} other letters")
    label = ArraySpec((most,), "int32", len(LETTERS) + 1, (*LETTERS, ABSENT))
    return {"style": ArraySpec((most, *image.shape), "uint8", 256), "style_label": label}


def draw_style(keys: jax.Array, siblings: jax.Array, label: jax.Array, most: int) -> Batch:
    """The fields `style` and `style_label` of examples: one to `most` of their siblings, without themselves.

    Args:
      keys: (B,); siblings: uint8 (B, letters, H, W, C); label: (B,), which of them the example is.
    """
    letters = siblings.shape[1]
    key_order, key_number = rng.split(keys, 2)
    places = rng.uniform(key_order, (letters,)) + (jnp.arange(letters)[None] == label[:, None])  # itself comes last
    order = jnp.argsort(places, axis=1)[:, :most].astype(jnp.int32)
    number = jnp.clip(jnp.floor((most + 1.0) ** rng.uniform(key_number, ())), 1, most)
    shown = jnp.arange(most)[None] < number[:, None]
    chosen = jnp.take_along_axis(siblings, order[:, :, None, None, None], axis=1)
    style = jnp.where(shown[:, :, None, None, None], chosen, 0).astype(jnp.uint8)
    return {"style": style, "style_label": jnp.where(shown, order, letters)}


def style_condition(pictures: Mapping[str, np.ndarray], fields: Mapping[str, ArraySpec]) -> dict[str, np.ndarray]:
    """The fields `style` and `style_label` of pictures of letters, as one condition for all images.

    Args:
      pictures: {letter: uint8 (H, W, C)}; fields: those of the data that a model was trained on.
    Raises:
      UserError: no pictures, more than the model takes, unlike sizes, or a character that no training font has.
    """
    style, names = fields["style"], fields["style_label"].names
    most, shape = style.shape[0], style.shape[1:]
    require(len(pictures) > 0, "there is no style glyph: give the pictures of one letter or more")
    require(len(pictures) <= most, f"there are {len(pictures)} style glyphs: the model takes {most} at most")
    images, labels = np.zeros(style.shape, np.uint8), np.full(most, names.index(ABSENT), np.int32)
    for place, (letter, picture) in enumerate(pictures.items()):
        require_letter(letter, names[:-1])
        same = f"the style glyph {letter!r} has shape {picture.shape}: it must have {shape}, as the training's"
        require(picture.shape == shape, same)
        images[place], labels[place] = picture, names.index(letter)
    return {"style": images, "style_label": labels}


def require_letter(letter: str, known: tuple[str, ...]) -> None:
    """Raises `UserError` for a character that no font of the training set has."""
    message = f"{letter!r} is a character that no font of the training set has: it has {''.join(known)}"
    require(letter in known, message)
