"""Other letters of an example's font, which few-shot font generation models take as style references.

They are two fields: `style`, uint8 (K, H, W, C), and `style_label`, int32 (K,), the class of each letter. There may be
fewer than K letters: the remaining entries have the label `absent`, and undefined pictures.

For each example the number k of letters is drawn from p(k) = ln((k + 1) / k) / ln(K + 1), k = 1 .. K, which makes 1 to
2 letters as likely as 3 to 8; then k letters other than its own are drawn.
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
ABSENT = "absent"  # the label's name of an entry without a letter


def style_fields(most: int, image: ImageSpec) -> dict[str, ArraySpec]:
    """The specifications of the fields for at most this many letters. Raises `UserError` unless a font has more."""
    others = len(LETTERS) - 1
    require(most <= others, f"data.style is {most}: a font has {others} other letters")
    label = ArraySpec((most,), "int32", len(LETTERS) + 1, (*LETTERS, ABSENT))
    return {"style": ArraySpec((most, *image.shape), "uint8", 256), "style_label": label}


def draw_style(keys: jax.Array, siblings: jax.Array, label: jax.Array, most: int) -> Batch:
    """Draws the fields `style` and `style_label` of examples: one to `most` of their siblings, without themselves.

    Args:
      keys: (B,); siblings: uint8 (B, letters, H, W, C); label: (B,), the index of the example among them.
    """
    letters = siblings.shape[1]
    key_order, key_number = rng.split(keys, 2)
    places = rng.uniform(key_order, (letters,)) + (jnp.arange(letters)[None] == label[:, None])  # its own comes last
    order = jnp.argsort(places, axis=1)[:, :most].astype(jnp.int32)
    number = jnp.clip(jnp.floor((most + 1.0) ** rng.uniform(key_number, ())), 1, most)
    shown = jnp.arange(most)[None] < number[:, None]
    chosen = jnp.take_along_axis(siblings, order[:, :, None, None, None], axis=1)
    style = jnp.where(shown[:, :, None, None, None], chosen, 0).astype(jnp.uint8)
    return {"style": style, "style_label": jnp.where(shown, order, letters)}


def style_condition(pictures: Mapping[str, np.ndarray], fields: Mapping[str, ArraySpec]) -> dict[str, np.ndarray]:
    """The fields `style` and `style_label` for pictures of letters, as one condition for all images.

    Args:
      pictures: {letter: uint8 (H, W, C)}; fields: those of the data that the model was trained on.
    Raises:
      UserError: no pictures, more than the model takes, other sizes, or a character that no training font has.
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
