"""Processes that measure, one request at a time; one that fails, hangs or kills its process does not affect others.

A request names a function of this package, such as "fast.prepare", and its arguments; the answer is its result, as
JSON. JAX and PyTorch run in separate processes, so that neither holds memory that the other needs.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
PATHS = [str(ROOT), str(BENCHMARKS), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]


class Failed(Exception):
    """A request gave no result; the message is one line."""


class Missing(Failed):
    """A request needs a package that is not installed; the message is the package's name."""


class Late(Failed):
    """A request was stopped because it exceeded its time limit."""


class Server:
    """A process that answers requests; it is started by the first request, and restarted after one that ended it.

    Args:
      log: file for its output.
      environment: variables in addition to those of this process.
      start: time limit for its start, in seconds.
    """

    def __init__(self, python: str, log: Path, environment: dict[str, str] | None = None):
        self.python, self.log, self.environment = python, log, environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: str, seconds: float, /, **arguments: Any) -> Any:
        """The result of a function of this package.

        Raises:
          Missing: it imports a package that is not installed.
          Late: it took longer than the given seconds.
          Failed: it raised an error, or ended its process.
        """
        if self.process is None:
            command = [self.python, "-c", f"import sys; sys.path[:0] = {PATHS!r}; from on_device import servers as s"]
            command[-1] += "; s.serve()"
            environment = {**os.environ, "TQDM_DISABLE": "1", **self.environment}
            with self.log.open("ab") as log:
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
                self.process = subprocess.Popen(command, **pipes, env=environment)
        process = self.process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"request": request, "arguments": arguments}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._read(time.monotonic() + seconds, seconds)
        if "missing" in answer:
            raise Missing(answer["missing"])
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["result"]

    def _read(self, until: float, seconds: float) -> Any:
        assert self.process is not None and self.process.stdout is not None
        line, number = b"", self.process.stdout.fileno()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([number], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.close()
                raise Late(f"stopped after {seconds:.0f} s")
            part = os.read(number, 1 << 16)
            if not part:
                code = self.process.wait()
                self.process = None
                raise Failed(f"its process ended with code {code}: {last_line(self.log)}")
            line += part
        return json.loads(line)

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def last_line(path: Path) -> str:
    """The last nonempty line of a file."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def serve() -> None:
    """Answers requests from stdin until it is closed. What is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        module, _, function = asked["request"].partition(".")
        try:
            task = getattr(importlib.import_module(f"on_device.{module}"), function)
            answer = {"result": task(**asked["arguments"])}
        except Exception as error:
            traceback.print_exc()
            if package := missing_package(error):
                print(json.dumps({"missing": package}), file=answers, flush=True)
                continue
            text = " ".join(str(error).split())
            answer = {"error": f"{type(error).__name__}: {text}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


def missing_package(error: Exception) -> str:
    """The package that an import did not find; "" for other errors, including a missing module of this repository."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    package = error.name.partition(".")[0]
    return "" if any((Path(path) / name).exists() for path in PATHS for name in (package, f"{package}.py")) else package
