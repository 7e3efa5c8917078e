"""Texts of a model that has a distribution of them, such as DALL-E: continued, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jgen.core import keys as rng
from jgen.core.generate import check_key, require_capability
from jgen.core.model import Context, GenerativeModel, Roles
from jgen.errors import require


def complete(
    model: GenerativeModel,
    params: Roles,
    ctx: Context,
    tokenizers: Mapping[str, Any],
    key: jax.Array,
    text: str,
    n: int,
    start: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[str]:
    """`n` texts that begin with `text`, drawn token by token; text i has the key `fold_in(key, start + i)`.

    Args:
      tokenizers: of the model's text fields, by name.
      text: the beginning; spaces at its end are left out, since they belong to the next word's token.
      temperature, top_k, top_p: as where images are sampled; 1, 0 and 1 leave the model's distribution as it is.
    Raises:
      NotSupported: the model has no distribution of texts. UserError: n below 1, a beginning that is too long, or
        options out of range.
    """
    function, tokenizer = function_of(model, tokenizers, "complete_text")
    require(n >= 1, f"n is {n}: the number of texts must be above zero")
    text = text.rstrip()
    whole = replace(tokenizer, length=len(text.encode()) + 3).encode(text)  # a token has a byte or more
    known, most = int(np.count_nonzero(whole)) - 1, tokenizer.length - 2  # padding is 0; the end is not known
    require(known - 1 <= most, f"text has {known - 1} tokens: {model.name} has texts of at most {most}")
    keys = rng.image_keys(check_key(key), start + np.arange(n))
    draw = jax.jit(partial(function, temperature=temperature, top_k=top_k, top_p=top_p))
    tokens = np.tile(tokenizer.encode(text), (n, 1))
    return [tokenizer.decode(row) for row in np.asarray(draw(params, ctx, keys, tokens, np.full(n, known)))]


def score(
    model: GenerativeModel,
    params: Roles,
    ctx: Context,
    tokenizers: Mapping[str, Any],
    texts: Sequence[str],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """log p of each text in nats, float32 (n,), and how many tokens it has after its start, (n,).

    Raises:
      NotSupported: the model has no distribution of texts. UserError: no texts, or one in place of a sequence.
    """
    function, tokenizer = function_of(model, tokenizers, "text_log_prob")
    require(not isinstance(texts, str) and len(texts) > 0, "texts must be a sequence of one text or more")
    tokens, log_prob = np.stack([tokenizer.encode(text) for text in texts]), jax.jit(function)
    last, places = len(tokens) - 1, np.arange(batch_size)
    rows = [np.minimum(first + places, last) for first in range(0, len(tokens), batch_size)]
    log_p = np.concatenate([log_prob(params, ctx, tokens[part]) for part in rows])[: len(tokens)]
    return log_p, np.count_nonzero(tokens, axis=1) - 1  # padding is 0


def function_of(model: GenerativeModel, tokenizers: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """A function of texts that a model lends, and the tokenizer of its texts."""
    if name not in model.functions:
        require_capability(model, name)
    return model.functions[name], next(tokenizers[field] for field in model.conditions if field in tokenizers)
