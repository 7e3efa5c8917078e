"""Failures that only appear while a compiled program runs: a solver that does not converge, a sample that overflows.

A compiled function cannot raise. Instead it reports which images failed; its caller may collect the reports as
additional results of the program and raise on the host. Without a collector a report has no effect.
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
    """Reports which images failed, bool (B,), to the collector.

    Call it at the top level of a model's function: inside an inner `jit`, `vmap` or `scan` a tracer would leak.
    """
    reports = _reports.get()
    if reports is not None:
        reports[what] = reports[what] | failed if what in reports else failed


@contextmanager
def collect() -> Iterator[Reports]:
    """Context manager for tracing a function: collects its reports, which the program should return with its result."""
    reports: Reports = {}
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


def check(reports: Mapping[str, np.ndarray], index: np.ndarray) -> None:
    """Raises `UserError` if images failed; the message names some of them and what went wrong.

    Args:
      reports: {what went wrong: bool (n,)}; index: the indices of these images, (n,).
    """
    for what, failed in reports.items():
        numbers = index[np.asarray(failed)]
        some = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
        require(len(numbers) == 0, f"image{'s' * (len(numbers) > 1)} {some} failed: {what}")
