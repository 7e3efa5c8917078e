"""What train.py and sample.py share: configurations by path, one-line errors, the compilation cache."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jgen.errors import UserError, exit_code, require
from jgen.experiment import Experiment

DEFAULT = "configs/diffusion/ddpm.py:digits"


def load_config(name: str, root: Path) -> tuple[Experiment, str]:
    """The experiment that `configs/<family>/<system>.py[:variant]` names, and "<system>-<variant>".

    A path is looked up as it is, then under `root`. Without a variant it is the file's first.

    Raises:
      UserError: no such file or variant, or a file that is no configuration.
    """
    path_name, _, variant = name.partition(":")
    path = next((p for p in (Path(path_name), root / path_name) if p.is_file()), None)
    require(path is not None, f"there is no configuration {path_name}: `python train.py --list` shows them")
    assert path is not None
    module = import_config(path)
    variant = variant or next(iter(module.VARIANTS))
    known = ", ".join(module.VARIANTS)
    require(variant in module.VARIANTS, f"{path_name} has no variant {variant!r}: it has {known}")
    return module.get_config(variant), f"{path.stem}-{variant}"


def import_config(path: Path) -> Any:
    """The module of a configuration file. Raises `UserError` where it lacks VARIANTS and get_config."""
    module = import_file(path)
    is_config = hasattr(module, "VARIANTS") and hasattr(module, "get_config")
    require(is_config, f"{path} is no configuration: it must have VARIANTS and get_config(variant)")
    return module


def import_file(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"jgen_config_{path.stem}", path)
    require(spec is not None and spec.loader is not None, f"{path} is not a Python file")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def list_configs(root: Path) -> str:
    """One line for every configuration and variant."""
    rows = []
    for path in sorted((root / "configs").glob("*/*.py")):
        for variant, line in import_config(path).VARIANTS.items():
            rows.append((f"{path.relative_to(root)}:{variant}", line))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in rows)


def parse(cls: Any, args: Sequence[str], prog: str, description: str) -> Any:
    """Command line to a dataclass with tyro; what it finds wrong becomes one line, a `UserError`."""
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(cls, args=list(args), prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(one_line(captured.getvalue())) from None


def one_line(boxed: str) -> str:
    """The sentences of a tyro message, without its frame, its title and its pointers to help."""
    rows = [re.sub(r"[│╭╮╰╯]|\x1b\[[0-9;]*m", "", row).strip() for row in boxed.splitlines()]
    said = []
    for row in rows[1:]:
        if set(row) <= set("─ "):
            break  # below the first rule are help texts
        said.append(row)
    sentence = " ".join(filter(None, said)) or " ".join(filter(None, rows))
    wrong = next((word for word in sentence.replace(",", " ").split() if word.startswith("--")), "")
    start = next((i for i, row in enumerate(rows) if row.startswith("Perhaps you meant")), len(rows))
    offered = [row.split()[0].rstrip(",") for row in rows[start:] if row.startswith("--")]
    near = difflib.get_close_matches(wrong, offered, n=1, cutoff=0.0)
    return f"{sentence} (did you mean {near[0]}?)" if near else sentence


def set_up_process() -> None:
    """Keeps compiled programs on disk, so that a second start is quick, and freed memory in the process.

    An unwritable cache is no error.
    """
    keep_memory()
    import jax

    from jgen.data.sources import cache_dir

    if not jax.config.jax_compilation_cache_dir:  # the environment may name another
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_raise_persistent_cache_errors", False)


def keep_memory() -> None:
    """Has glibc keep freed memory, in huge pages, rather than hand a step's buffers back and fault them in again.

    Worth a fifth of a U-Net's training step on CPU. To be called before threads start; elsewhere it does nothing.
    """
    import ctypes

    import jax

    # Programs then run on the thread that calls them: a thread of the runtime's own would allocate beside the heap.
    jax.config.update("jax_cpu_enable_async_dispatch", False)

    M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE, HUGE = -1, -4, 14, 1 << 21
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return
    assert libc is not None
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        libc.mallopt(parameter, value)
    # Address space that the heap grows into, marked before any of it is touched: it takes no memory yet.
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    start = libc.malloc(size)
    if start:
        aligned = -(-start // HUGE) * HUGE
        libc.madvise(aligned, start + size - aligned, MADV_HUGEPAGE)
        libc.free(start)


def main(command: Callable[[list[str]], int]) -> None:
    """Runs a command with the process's arguments; a `UserError` is one line on stderr and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        sys.exit(exit_code(lambda: command(sys.argv[1:])))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # what reads the output has ended; leave nothing that would be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
