"""Progress bars: redrawn often on a terminal, and seldom where their lines go into a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

ON_TERMINAL, IN_FILE = 0.5, 30.0  # seconds between two drawings


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm's bar on stderr, with its options."""
    every = ON_TERMINAL if sys.stderr.isatty() else IN_FILE
    return tqdm(iterable, file=sys.stderr, mininterval=every, maxinterval=every, **options)
