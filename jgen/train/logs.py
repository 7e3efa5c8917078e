"""Metrics: means over windows of steps, written to metrics.jsonl, the console and TensorBoard.

metrics.jsonl is a pure function of the run's configuration: it contains no times, and a resumed run first removes lines
past its checkpoint, so that an interrupted run and an uninterrupted one write the same bytes. Speeds are only printed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jgen.core.files import finite_or_none, written_whole
from jgen.errors import UserError


def validation_scores(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's validation scores, {"step": ..., name: value, ...}; [] if metrics.jsonl is missing."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except OSError:  # a run that was copied without it can still be used
        return []
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if whole_until(line, math.inf)]
    return [line for line in lines if line.get("split") == "validation"]


def best_of(lines: list[dict[str, Any]], best: tuple[str, str] | None) -> dict[str, Any] | None:
    """The best of these lines by (score, "min" or "max"); None if no line has a finite score, or `best` is None."""
    if best is None:
        return None
    name, order = best
    finite = [line for line in lines if line.get(name) is not None and math.isfinite(line[name])]
    return (max if order == "max" else min)(finite, key=lambda line: line[name]) if finite else None


class Window:
    """Running means of the metrics since the last line; `state` is stored in checkpoints, to resume a window."""

    def __init__(self, state: dict[str, Any] | None = None):
        self.sums: dict[str, float] = dict((state or {}).get("sums", {}))
        self.counts: dict[str, int] = dict((state or {}).get("counts", {}))
        self.skipped: int = (state or {}).get("skipped", 0)

    @property
    def state(self) -> dict[str, Any]:
        """A copy, since a checkpoint is written while the next steps are added."""
        return {"sums": dict(self.sums), "counts": dict(self.counts), "skipped": self.skipped}

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds a step's metrics; values that are not finite, such as those of a skipped step, are left out."""
        self.skipped = int(metrics["skipped"])
        for name, value in metrics.items():
            if name in ("skipped", "skipped_in_a_row") or not math.isfinite(float(value)):
                continue
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1

    def line(self) -> dict[str, float]:
        """The means, and the total number of skipped steps; starts the next window."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.sums, self.counts = {}, {}
        return {**means, "skipped": self.skipped}


class MetricsLog:
    """Appends to metrics.jsonl (one object per line), and to TensorBoard if tensorboardX is installed."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        try:
            cut(self.path, step)
            self._file = open(self.path, "a")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._board = None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        try:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            self._without_board(error)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: {"step": ..., "split": "train" or "validation", name: value, ...}."""
        try:
            self._file.write(to_json_line({"step": step, "split": split, **values}))
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        for name, value in values.items() if self._board is not None else ():
            self._on_board("add_scalar", f"{split}/{name}", value, step)

    def _on_board(self, method: str, *args: Any) -> None:
        """Calls TensorBoard's writer; if it fails, the run continues without it."""
        try:
            if self._board is not None:
                getattr(self._board, method)(*args)
        except OSError as error:
            self._without_board(error)

    def _without_board(self, error: OSError) -> None:
        self._board = None
        print(f"warning: no TensorBoard logs from here on: {error.strerror or error}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # `write` has already reported errors
            self._file.close()
        self._on_board("close")


def to_json_line(document: dict[str, Any]) -> str:
    """A line of JSON; numbers that are not finite, which JSON cannot represent, become null."""
    return json.dumps(finite_or_none(document), allow_nan=False) + "\n"


def cut(path: Path, step: int) -> None:
    """Removes lines past `step`, and an incomplete last line."""
    if not path.exists():
        return
    text = path.read_text()
    until = "".join(line for line in text.splitlines(keepends=True) if whole_until(line, step))
    if until != text:
        with written_whole(path) as aside:
            aside.write_text(until)


def whole_until(line: str, step: float) -> bool:
    """Whether a line is complete and of a step up to `step`."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def describe(values: dict[str, float], names: Iterable[str] | None = None) -> str:
    """ "loss 0.0312  grad_norm 0.12" """
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if names is None or name in names)
