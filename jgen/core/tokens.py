"""Texts as models see them: the special tokens, and the field of the data that a text is."""

from __future__ import annotations

from jgen.core.model import ArraySpec, DataSpec
from jgen.errors import UserError

PADDING, START, END = 0, 1, 2  # a text is a start, its tokens, an end, and padding


def token_field(data: DataSpec, name: str, least: int = END + 1) -> ArraySpec:
    """The specification of a field of tokens (T,). Raises `UserError` for a field that is none, or is missing.

    Args:
      name: what the option `text` says; least: ids that there are at the least.
    """
    spec = data.fields.get(name)
    if spec is None or len(spec.shape) != 1 or spec.num_values < least:
        has = ", ".join(data.fields) or "no fields"
        raise UserError(f"text is {name!r}: it must be a field of tokens; the data has {has}")
    return spec
