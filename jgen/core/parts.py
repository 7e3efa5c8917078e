"""Applies a function to many examples a few at a time, in one compiled program, to bound the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_parts(function: Callable[[Any], jax.Array], arrays: Any, size: int) -> jax.Array:
    """Applies `function` to `arrays`, a tree of arrays (B, ...), at most `size` examples at a time; returns (B, ...).

    Parts are of equal length; the last is padded with copies of the last example.
    """
    batch = len(jax.tree.leaves(arrays)[0])
    count = math.ceil(batch / size)
    if count == 1:
        return function(arrays)
    size = math.ceil(batch / count)
    index = np.minimum(np.arange(count * size), batch - 1).reshape(count, size)
    out = jax.lax.map(function, jax.tree.map(lambda x: x[index], arrays))
    return out.reshape(count * size, *out.shape[2:])[:batch]
