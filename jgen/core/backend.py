"""Whether layers are computed by formulations for CPU, or by the plain operations of XLA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

# A context of JAX's, so that functions under `jax.jit` that were traced before are traced again inside `plain_forms`.
_plain = jax.make_user_context(False)


def for_cpu() -> bool:
    """Whether layers use the formulations that CPUs run fastest: with fewer products, or in pieces that fit a cache.

    Asked while a program is traced. True on CPU, outside of `plain_forms`.
    """
    return jax.default_backend() == "cpu" and not _plain.value


@contextmanager
def plain_forms() -> Iterator[None]:
    """Makes layers use the plain operations of XLA on every backend, in what is traced inside.

    The formulations for CPU have no forward-mode derivatives, and do other numbers of operations than the formulas say.
    Use it around `jax.jvp`, or where operations are counted:

        with plain_forms():
            value, tangent = jax.jvp(loss, (params,), (direction,))
    """
    with _plain(True):
        yield
