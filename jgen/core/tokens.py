"""Texts as tokens: the special tokens, and the data field that holds a text."""

from __future__ import annotations

import sys

import numpy as np

from jgen.core.generate import brief
from jgen.core.model import ArraySpec, DataSpec
from jgen.core.trained import Tokenizer
from jgen.errors import UserError, require

PADDING, START, END = 0, 1, 2  # a text is a start, its tokens, an end, and padding


def token_field(data: DataSpec, name: str, least: int = END + 1) -> ArraySpec:
    """The specification of a field of tokens (T,). Raises `UserError` for a field that is missing or not of tokens.

    Args:
      name: the value of the option `text`; least: the smallest allowed vocabulary.
    """
    spec = data.fields.get(name)
    if spec is None or len(spec.shape) != 1 or spec.num_values < least:
        has = ", ".join(data.fields) or "no fields"
        raise UserError(f"text is {name!r}: it must be a field of tokens; the data has {has}")
    return spec


def encode_text(tokenizer: Tokenizer, name: str, text: str) -> np.ndarray:
    """The tokens of a text, int32 (T,). A text that is too long is truncated, with a warning; raises `UserError` for an
    empty one.

    Args:
      name: the condition's name, for messages; a negative text may be empty, which is the same as omitting it.
    """
    require(bool(text.strip()) or name.startswith("negative_"), f"{name} is {text!r}: say what the image shows")
    tokens = tokenizer.encode(text)
    left_out = tokenizer.left_out(text)
    if left_out:
        words = f"{name} is {brief(text)!r}: it is cut to the {tokenizer.length} tokens of the model's texts"
        print(f"warning: {words}, without {brief(left_out)!r}", file=sys.stderr)
    return tokens
