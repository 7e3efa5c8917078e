"""Shared by the commands of studies: the paths of a record and its figure, and the final report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jgen import cli
from jgen.core.files import check_writable

Row = dict[str, Any]


def open_record(out: str, name: str) -> tuple[Path, Path]:
    """Sets up JAX, and returns a study's paths (FOLDER/NAME.json, FOLDER/NAME.png).

    Raises:
      UserError: the folder cannot be written.
    """
    record, figure = (Path(out).expanduser() / f"{name}.{kind}" for kind in ("json", "png"))
    check_writable(record)
    cli.set_up_process()
    return record, figure


def report(
    figure: Path, rows: list[Row], draw: Callable[[Path, list[Row]], None], table: Callable[[list[Row]], str]
) -> int:
    """Draws the figure, prints the table of the rows and the figure's path, and returns the command's exit code."""
    draw(figure, rows)
    print(table(rows))
    print(figure)
    return 0


def save_figure(path: Path, fig: Any) -> None:
    """Writes a matplotlib figure as PNG, with identical bytes for identical numbers."""
    from matplotlib import pyplot as plt

    fig.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(fig)
