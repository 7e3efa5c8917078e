"""Test settings: strict rank promotion, an own cache folder, and two or more simulated devices where asked for."""

import fcntl
import itertools
import os
import subprocess
import sys
import zlib
from pathlib import Path

# The processes of a test run share the cores: threads of NumPy and PyTorch that wait for each other would double times.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import jax  # noqa: E402
import pytest  # noqa: E402

# Tests compile much and run little: code that is not optimised halves their time (read when JAX starts), and that which
# the older emitters of fused loops write, gone from JAX 0.12, takes a quarter less again.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
QUICK += " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
ROOT = Path(__file__).resolve().parents[1]
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # written into every program that is lowered


def pytest_addoption(parser):
    parser.addoption("--part", default="0/1", help="K/N: the tests whose number, which never changes, is K modulo N")


def pytest_collection_modifyitems(config, items):
    """Long tests first, so that no process is left with one at the end; those of the contract system by system, so that
    a process traces a system's programs once."""
    part, parts = map(int, config.getoption("part").split("/"))
    others = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts != part % parts]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]

    def place(item):
        name = item.callspec.params.get("name", "") if hasattr(item, "callspec") else ""
        of_contract = item.module.__name__.endswith(("test_contract", "test_systems"))
        return item.get_closest_marker("long") is None, str(name) if of_contract else ""

    items.sort(key=place)


# A process has 65,530 memory maps by Linux's default. XLA's compiled programs take several each, and a process that
# runs out of them dies of a segmentation fault.
MOST_MAPS, TESTS_BETWEEN_COUNTS = 35_000, 20
finished_tests = itertools.count(1)


def pytest_runtest_teardown():
    """Drops the compiled programs before there are too many."""
    maps = Path("/proc/self/maps")
    if next(finished_tests) % TESTS_BETWEEN_COUNTS == 0 and maps.exists():
        with maps.open() as lines:
            too_many = sum(1 for _ in lines) > MOST_MAPS
        if too_many:
            jax.clear_caches()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all processes of this run of the tests have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(shared):
    """A cache of the test run's own, compiled programs included: tests neither use nor touch the user's."""
    folder = os.environ.get("JGEN_TEST_CACHE") or str(shared / "cache")
    os.environ["JGEN_CACHE"] = folder
    os.environ.pop("TFDS_DATA_DIR", None)
    from jgen.cli import set_up_process

    set_up_process()
    # Of the thousands of small programs that tests compile, few are asked for again.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return Path(folder)


@pytest.fixture(scope="session")
def digits(cache):
    """The embedded digits."""
    from jgen.data import dataset
    from jgen.data.config import Config

    return dataset.load(Config(name="digits"))


@pytest.fixture(scope="session")
def tiny_run(cache, shared):
    """A finished run of ddpm:tiny, four steps long, trained once for all processes: copy it before you change it."""
    run = shared / "runs" / "tiny"
    args = ["train.py", "configs/diffusion/ddpm.py:tiny", "--train.steps", "4", "--train.sample-every", "0"]
    args += ["--train.optimiser.learning-rate", "0.02", "--train.optimiser.warmup-steps", "0"]  # so that labels matter
    with open(shared / "tiny.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.exists():
            command = [sys.executable, *args, "--workdir", str(run)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return run


def program_environment(devices: int, env: dict[str, str]) -> dict[str, str]:
    """The environment of a program with simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), **env}


@pytest.fixture
def start_python(cache):
    """Starts a Python program from the repository's root with simulated devices; it is killed when the test ends."""
    started = []

    def start(*args: str, devices: int = 1, **env: str):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        words = [sys.executable, *map(str, args)]
        started.append(subprocess.Popen(words, cwd=ROOT, env=program_environment(devices, env), **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.fixture
def python(cache):
    """Runs a Python program from the repository's root with simulated devices; returns the finished process."""

    def run(*args: str, devices: int = 1, check: bool = True, cwd: Path = ROOT, timeout: int = 300, **env: str):
        words, environment = [sys.executable, *map(str, args)], program_environment(devices, env)
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


def real_images(data, num: int, split: str = "test"):
    """The first images of a split with the levels that a model of these options takes, and their labels."""
    import numpy as np

    from jgen.data import dataset
    from jgen.data.transforms import make_transform

    opened = dataset.load(data)
    batch = opened.splits[split].fetch(np.arange(num))
    keys = jax.random.split(jax.random.key(0), num)
    transform = make_transform(data, opened.spec, train=False)
    return np.asarray(transform(keys, batch)["image"]), batch["label"]


@pytest.fixture
def own(tiny_run, tmp_path):
    """A copy of the run that a test may damage."""
    import shutil

    return shutil.copytree(tiny_run, tmp_path / "own")


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def mistake(call, *words, kind=None):
    """The one line of the error that a call ends in has the words.

    Args:
      kind: its class; None for UserError.
    """
    from jgen.errors import UserError

    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is (kind or UserError) and message and "\n" not in message
    for word in words:
        assert word in message, (word, message)


def final_arrays(run):
    """Every array of the newest checkpoint, bit for bit, and the metrics' bytes."""
    import numpy as np
    import orbax.checkpoint as ocp

    from jgen.train import checkpoints

    step = checkpoints.newest_good(run / "checkpoints")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        restored = checkpointer.restore((run / "checkpoints" / str(step)).absolute(), args)
    arrays = {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(restored.state)}
    return arrays, (run / "metrics.jsonl").read_bytes()


def assert_user_mistake(done, *words: str) -> None:
    """One line on stderr that has the words, exit code 2, no traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])
