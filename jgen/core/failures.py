"""Failures that only show while a compiled program runs: a solver that does not converge, a sample that overflows.

A compiled function cannot raise. It reports which images failed, and whoever compiles it may collect the reports as
further results, and name them on the host. Without a collector a report does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import numpy as np

from jgen.errors import require

Reports = dict[str, jax.Array]  # {what went wrong: bool (B,)}

_reports: ContextVar[Reports | None] = ContextVar("reports", default=None)


def report(what: str, failed: jax.Array) -> None:
    """Tells the collector which images failed, bool (B,).

    Call it at the top level of a model's function: inside an inner `jit`, `vmap` or `scan` a tracer would leak.
    """
    reports = _reports.get()
    if reports is not None:
        reports[what] = reports[what] | failed if what in reports else failed


@contextmanager
def collect() -> Iterator[Reports]:
    """Around the tracing of a function: what it reports, to be returned from the program beside its result."""
    reports: Reports = {}
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


def check(reports: Mapping[str, np.ndarray], index: np.ndarray) -> None:
    """Raises `UserError` for images that failed, which names some of them and what went wrong.

    Args:
      reports: {what went wrong: bool (n,)}; index: the numbers of these images, (n,).
    """
    for what, failed in reports.items():
        numbers = index[np.asarray(failed)]
        some = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
        require(len(numbers) == 0, f"image{'s' * (len(numbers) > 1)} {some} failed: {what}")
