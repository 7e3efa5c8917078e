"""Progress bars: redrawn often on a terminal, and rarely if the output is a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from jgen.core import parallel

ON_TERMINAL, IN_FILE = 0.5, 30.0  # seconds between updates


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm's bar on stderr, with tqdm's options; of processes that work together, only the first shows one."""
    every = ON_TERMINAL if sys.stderr.isatty() else IN_FILE
    options.setdefault("disable", not parallel.is_main_process())
    return tqdm(iterable, file=sys.stderr, mininterval=every, maxinterval=every, **options)
