"""Whether a computation is written in the form that CPUs run fastest, or in its plain one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_plain: ContextVar[bool] = ContextVar("plain", default=False)


def for_cpu() -> bool:
    """Whether layers take the form that CPUs run fastest: fewer products, or pieces that a core's cache holds.

    Asked while a program is traced, and true on CPU outside of `plain_forms`.
    """
    return jax.default_backend() == "cpu" and not _plain.get()


@contextmanager
def plain_forms() -> Iterator[None]:
    """Around the tracing of a program whose operations are to be those of the formulas, on every backend.

    What was traced before is not traced again: a process that counts operations does nothing else.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)
