"""Test settings: strict rank promotion, an own cache folder, and two or more simulated devices where asked for."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

# Tests compile much and run little: code that is not optimised halves their time (read when JAX starts).
QUICK = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
ROOT = Path(__file__).resolve().parents[1]
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Long tests first, so that no process is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of the test run's own, compiled programs included: tests neither use nor touch the user's."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = os.environ.get("JGEN_TEST_CACHE") or str(shared / "cache")
    os.environ["JGEN_CACHE"] = folder
    os.environ.pop("TFDS_DATA_DIR", None)
    from jgen.cli import set_up_process

    set_up_process()
    return Path(folder)


@pytest.fixture
def python(cache):
    """Runs a Python program from the repository's root with simulated devices; returns the finished process."""

    def run(*args: str, devices: int = 1, check: bool = True, cwd: Path = ROOT, timeout: int = 300, **env: str):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
            "PYTHONPATH": str(ROOT),
            **env,
        }
        done = subprocess.run(
            [sys.executable, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


def assert_user_mistake(done, *words: str) -> None:
    """One line on stderr that has the words, exit code 2, no traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])
