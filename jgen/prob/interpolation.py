"""Spherical interpolation between two vectors (Shoemake 1985), as for noise and L2-normalised embeddings.

    slerp(a, b, w) = sin((1 - w) omega) / sin(omega) a + sin(w omega) / sin(omega) b,  cos(omega) = a . b / (|a| |b|)

If both vectors have the same length, so have all between them. For nearly parallel vectors it is linear interpolation.
"""

from __future__ import annotations

from typing import Any

from jgen.prob.process import library

LEAST_ANGLE = 1e-4


def slerp(a: Any, b: Any, w: Any) -> Any:
    """(B, ...) from a at w = 0 to b at w = 1, each example one vector; w: (B,). Arrays are NumPy's or JAX's."""
    lib = library(a)
    flat_a, flat_b, shape = a.reshape(len(a), -1), b.reshape(len(b), -1), (len(a), *[1] * (a.ndim - 1))
    norms = lib.sqrt(lib.sum(flat_a**2, axis=1) * lib.sum(flat_b**2, axis=1))
    cosine = lib.sum(flat_a * flat_b, axis=1) / lib.maximum(norms, 1e-12)
    omega = lib.arccos(lib.clip(cosine, -1.0 + 1e-7, 1.0))
    near = omega < LEAST_ANGLE
    sine = lib.sin(lib.where(near, 1.0, omega))
    weight_a = lib.where(near, 1.0 - w, lib.sin((1.0 - w) * omega) / sine)
    weight_b = lib.where(near, w, lib.sin(w * omega) / sine)
    return weight_a.reshape(shape) * a + weight_b.reshape(shape) * b
