"""Continuing and scoring texts with a model that has a distribution of them, such as DALL-E."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jgen.core import keys as rng
from jgen.core.generate import check_key, require_capability
from jgen.core.trained import TrainedModel
from jgen.errors import require


def complete_text(
    gen: TrainedModel,
    key: jax.Array,
    text: str = "",
    n: int = 1,
    *,
    start: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[str]:
    """`n` texts that begin with `text`, drawn token by token; text i has the key `fold_in(key, start + i)`.

    Args:
      gen: the generator, as returned by `jgen.load`.
      text: the beginning; trailing spaces are dropped, since they belong to the next word's token.
      temperature, top_k, top_p: as for sampling images; 1, 0 and 1 leave the model's distribution unchanged.
    Raises:
      NotSupported: the model has no distribution of texts. UserError: n below 1, a beginning that is too long, or
        options out of range.
    """
    function, tokenizer = function_of(gen, "complete_text")
    require(n >= 1, f"n is {n}: the number of texts must be above zero")
    text = text.rstrip()
    whole = replace(tokenizer, length=len(text.encode()) + 3).encode(text)  # a token has at least one byte
    known, most = int(np.count_nonzero(whole)) - 1, tokenizer.length - 2  # padding is 0; the end is not known
    require(known - 1 <= most, f"text has {known - 1} tokens: {gen.model.name} has texts of at most {most}")
    keys = rng.image_keys(check_key(key), start + np.arange(n))
    draw = jax.jit(partial(function, temperature=temperature, top_k=top_k, top_p=top_p))
    tokens = np.tile(tokenizer.encode(text), (n, 1))
    return [tokenizer.decode(row) for row in np.asarray(draw(gen.params, gen.ctx, keys, tokens, np.full(n, known)))]


def text_log_prob(gen: TrainedModel, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
    """log p of texts, nats, float32 (n,). Raises as `score`."""
    return score(gen, texts, batch_size)[0]


def perplexity(gen: TrainedModel, texts: Sequence[str], *, batch_size: int = 256) -> float:
    """exp of the mean negative log-likelihood per token (nats), end tokens included. Raises as `score`."""
    log_p, counts = score(gen, texts, batch_size)
    return float(np.exp(-log_p.sum(dtype=np.float64) / counts.sum()))


def score(gen: TrainedModel, texts: Sequence[str], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """log p of each text in nats, float32 (n,), and its number of tokens after the start token, (n,).

    Raises:
      NotSupported: the model has no distribution of texts. UserError: no texts, or a string instead of a sequence.
    """
    function, tokenizer = function_of(gen, "text_log_prob")
    require(not isinstance(texts, str) and len(texts) > 0, "texts must be a sequence of one text or more")
    tokens, log_prob = np.stack([tokenizer.encode(text) for text in texts]), jax.jit(function)
    last, places = len(tokens) - 1, np.arange(batch_size)
    rows = [np.minimum(first + places, last) for first in range(0, len(tokens), batch_size)]
    log_p = np.concatenate([log_prob(gen.params, gen.ctx, tokens[part]) for part in rows])[: len(tokens)]
    return log_p, np.count_nonzero(tokens, axis=1) - 1  # padding is 0


def function_of(gen: TrainedModel, name: str) -> tuple[Callable[..., jax.Array], Any]:
    """One of the model's `functions` on texts, and the tokenizer of its texts."""
    if name not in gen.model.functions:
        require_capability(gen.model, name)
    return gen.model.functions[name], next(gen.tokenizers[f] for f in gen.model.conditions if f in gen.tokenizers)
