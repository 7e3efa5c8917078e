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
    """Tells the collector that images failed: bool (B,), outside any transformation of a part of the function."""
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


def check(reports: Mapping[str, np.ndarray]) -> None:
    """Raises `UserError` for images that failed, with their number and what went wrong."""
    for what, failed in reports.items():
        number = int(np.sum(failed))
        require(number == 0, f"{number} of {len(failed)} images failed: {what}")
