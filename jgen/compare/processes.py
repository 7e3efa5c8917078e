"""Runs programs of jgen as separate processes, with their failures and signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jgen.compare.config import ROOT


class Failed(Exception):
    """A stage of one system ended with an error."""


class Stopped(BaseException):
    """One of `SIGNALS` was received. Not an `Exception`, which a library might catch."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def stop(number: int, frame: Any) -> None:
    """A signal handler that raises `Stopped`."""
    raise Stopped(number)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Context manager in which each of `SIGNALS` raises `Stopped`, unless it is ignored, as under nohup."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment() -> dict[str, str]:
    """The environment of the programs, such that they import this copy of jgen."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run(words: list[str], log: Path) -> None:
    """Runs a program of jgen, shows its progress and logs its output. Raises `Failed` with its last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # In a new session, so that Ctrl-C reaches only this program, which forwards it once, for a training to save.
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    last: deque[bytes] = deque(maxlen=400)
    process = None
    try:
        with log.open("ab", buffering=0) as file:
            process = subprocess.Popen([sys.executable, *words], env=environment(), **pipes)
            output: Any = process.stdout
            while piece := output.read1(4096):
                file.write(piece)
                last.append(piece)
                sys.stderr.buffer.write(piece)
                sys.stderr.flush()
        process.wait()
    except BaseException as error:  # including a full disk: no program keeps running in the background
        if process is not None and process.poll() is None:
            by_key = isinstance(error, Stopped) and error.number == signal.SIGINT
            process.send_signal(signal.SIGINT if by_key else signal.SIGTERM)
            sys.stderr.buffer.write(process.communicate()[0])
        raise
    if process.returncode:
        error_line = reason(b"".join(last).decode(errors="replace"))
        killed = f"killed by signal {-process.returncode}" if process.returncode < 0 else ""
        raise Failed(": ".join(filter(None, (killed, error_line))) or f"exit code {process.returncode}")


def reason(output: str) -> str:
    """Why a program failed, from its output: its error line, or the exception below a traceback."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error: |[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    return (errors or lines or [""])[-1].removeprefix("error: ").strip()
