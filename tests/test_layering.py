"""Which part of jgen may import which, what must not be imported at all, how long files and functions may be, what the
start of a program loads."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# A package or module under jgen may import these others (and itself). `models` has a rule of its own beside this.
MAY_IMPORT = {
    "errors": set(),
    "core": {"errors"},
    "prob": {"core", "errors"},
    "nn": {"core", "errors", "prob"},
    "samplers": {"core", "errors", "prob", "nn"},
    "models": {"core", "errors", "prob", "nn", "samplers"},
    "data": {"core", "errors", "prob"},
    "train": {"core", "errors", "prob", "data"},
    "metrics": {"core", "errors", "prob", "nn", "data", "train"},
    "experiment": {"core", "errors", "data", "train"},
    "cascade": {"core", "errors", "generator"},
    "generator": {"core", "errors", "prob", "experiment", "texts", "embeddings"},
    "embeddings": {"core", "errors", "prob"},
    "texts": {"core", "errors"},
    "api": {"core", "errors", "data", "train", "experiment", "generator", "runs", "convert"},
    "runs": {"core", "errors", "data", "train", "experiment"},
    "held_out": {"core", "errors", "prob", "data", "metrics", "embeddings", "generator"},
    "distributed": {"core", "errors"},
    "sampling": {"core", "errors", "data", "train", "cli", "generator"},
    "cli": {"core", "errors", "data", "train", "experiment", "runs", "distributed", "generator"},
    "sample_scores": {"core", "errors", "data", "metrics", "cli", "held_out", "embeddings", "generator", "cascade"},
    "evaluate": {"core", "errors", "data", "train", "metrics", "cli", "experiment", "cascade", "generator", "runs"}
    | {"held_out", "sample_scores", "distributed", "embeddings"},
    "convert": {"core", "errors", "prob", "nn", "models", "samplers", "data", "train", "cli", "experiment", "runs"},
    "studies": {
        "core",
        "errors",
        "data",
        "train",
        "cli",
        "generator",
        "runs",
        "samplers",
        "sample_scores",
        "metrics",
        "compare",
        "figures",
        "prob",
        "nn",
        "models",
        "fonts",
    },
    "fonts": {"core", "errors", "data", "cli", "generator"},
    "figures": {"core", "errors", "prob", "data", "train", "cli", "experiment", "generator", "runs"},
    "compare": {"core", "errors", "prob", "data", "train", "cli", "experiment", "generator", "runs"},
}
FAMILY_MAY_IMPORT = {"text_to_image": {"diffusion"}}  # whose objectives it is one more condition of
LAZY = {"tensorflow_datasets", "grain", "tyro", "tensorflow", "orbax"}  # slow or optional: never at module top level
LIMITS = {"train.py": 99, "sample.py": 99}
MOST_LINES = 500
MOST_LINES_OF_A_FUNCTION = 59  # in jgen
CLOCKS = {"time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time"}
CLOCKS |= {"process_time_ns", "thread_time", "thread_time_ns", "default_timer", "now", "utcnow", "today"}


def imported(node: ast.AST) -> list[str]:
    """The dotted names that an import statement may load; `from a import b` gives both a and a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return []


def at_top_level(tree: ast.AST) -> list[ast.AST]:
    """Nodes that run when the module is imported: all but the bodies of functions."""
    nodes, todo = [], [tree]
    while todo:
        node = todo.pop()
        nodes.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo.extend(ast.iter_child_nodes(node))
    return nodes


def is_pmap(node: ast.AST) -> bool:
    """`jax.pmap` under any name that reaches it, or the import of it."""
    if isinstance(node, ast.Attribute) and node.attr == "pmap":
        return not (isinstance(node.value, ast.Name) and node.value.id == "parallel")
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == "jax" and any(alias.name == "pmap" for alias in node.names)
    return False


def long_functions(tree: ast.AST) -> list[str]:
    """Functions with more lines than are allowed in jgen, those inside them and their docstrings counted."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lines = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return [f"{name} has {count} lines" for name, count in lines.items() if count > MOST_LINES_OF_A_FUNCTION]


def reads_clock(node: ast.AST) -> bool:
    """A call of a clock, or the import of one by name: what a test asserts of it depends on what else the machine
    does. A test may wait, `time.sleep`, for something that another process does, and it stops waiting after so many
    times."""
    if isinstance(node, ast.ImportFrom):
        return node.module in ("time", "timeit") and any(alias.name in CLOCKS for alias in node.names)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS


def faults(path: str, source: str) -> list[str]:
    """What is wrong with a file, by its path from the root: the rules above."""
    tree = ast.parse(source)
    parts = Path(path).with_suffix("").parts
    package = parts[1] if parts[0] == "jgen" and len(parts) > 1 else ""
    broken = long_functions(tree) if parts[0] == "jgen" else []
    for node in ast.walk(tree):
        for name in imported(node):
            if name.startswith("."):
                broken.append(f"relative import of {name}")
            if name == "jax._src" or name.startswith("jax._src."):
                broken.append(f"private {name}")
            target = name.split(".")
            if package not in MAY_IMPORT or target[0] != "jgen":
                continue
            if len(target) == 1:
                continue  # `from jgen import x` also gives jgen.x
            if target[1] != package and target[1] not in MAY_IMPORT[package]:
                broken.append(f"{package} imports {name}")
            families = {parts[2], *FAMILY_MAY_IMPORT.get(parts[2], set())} if package == "models" else set()
            if package == "models" and target[1] == "models" and not families & set(target[2:3]):
                broken.append(f"family {parts[2]} imports {name}")
        if is_pmap(node) and path != "jgen/core/parallel.py":
            broken.append("pmap outside jgen/core/parallel.py")
        if parts[0] == "tests" and reads_clock(node):
            broken.append("a clock is read in a test")
    for node in at_top_level(tree):
        for name in imported(node):
            if name.split(".")[0] in LAZY and not (path == "jgen/data/digits.py" and name == "tensorflow_datasets"):
                broken.append(f"{name} at module top level")
    lines = len(source.splitlines())
    if lines > LIMITS.get(path, MOST_LINES):
        broken.append(f"{lines} lines")
    if parts[-1] == "utils":
        broken.append("a file named utils.py")
    return broken


def repository_files() -> list[str]:
    roots = ["jgen", "configs", "tests", "benchmarks", "examples", "tools"]
    files = [path for root in roots for path in (ROOT / root).rglob("*.py")] + list(ROOT.glob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in files)


def test_the_repository_keeps_its_rules():
    files = repository_files()
    assert {"train.py", "sample.py", "jgen/api.py", "jgen/core/parallel.py", "tests/test_layering.py"} <= set(files)
    broken = [
        f"{path}: {fault}" for path in files if path.split("/")[0] != "tests" for fault in faults(path, read(path))
    ]
    assert not broken, "\n".join(broken)


def test_tests_keep_the_rules_that_concern_them():
    wanted = (" lines", "utils.py", "private", "a clock")
    paths = [path for path in repository_files() if path.startswith("tests/")]
    broken = [f"{p}: {fault}" for p in paths for fault in faults(p, read(p)) if any(word in fault for word in wanted)]
    assert not broken, "\n".join(broken)


def read(path: str) -> str:
    return (ROOT / path).read_text()


def test_every_package_and_module_has_a_rule():
    parts = {path.parent.name for path in (ROOT / "jgen").glob("*/__init__.py")}
    parts |= {path.stem for path in (ROOT / "jgen").glob("*.py") if path.stem != "__init__"}
    assert parts == set(MAY_IMPORT), parts ^ set(MAY_IMPORT)


@pytest.mark.parametrize(
    "path,source,wanted",
    [
        ("jgen/core/a.py", "from jgen.nn import unet", "core imports jgen.nn"),
        ("jgen/core/a.py", "import jgen.data.config", "core imports jgen.data.config"),
        ("jgen/core/a.py", "from jgen import prob", "core imports jgen.prob"),
        ("jgen/core/a.py", "def f():\n    import jgen.train.loop", "core imports jgen.train.loop"),
        ("jgen/prob/a.py", "from jgen.nn.unet import UNet", "prob imports jgen.nn.unet"),
        ("jgen/errors.py", "from jgen.core import keys", "errors imports jgen.core"),
        ("jgen/data/a.py", "from jgen.train.config import Config", "data imports jgen.train.config"),
        ("jgen/train/a.py", "from jgen.models.diffusion import ddpm", "train imports jgen.models.diffusion"),
        ("jgen/train/a.py", "from jgen.api import load", "train imports jgen.api"),
        ("jgen/metrics/a.py", "from jgen.samplers import diffusion", "metrics imports jgen.samplers"),
        ("jgen/samplers/a.py", "from jgen.models import diffusion", "samplers imports jgen.models"),
        ("jgen/models/gan/a.py", "from jgen.models.vae.vae import Config", "family gan imports jgen.models.vae.vae"),
        ("jgen/models/gan/a.py", "from jgen.models import vae", "family gan imports jgen.models.vae"),
        ("jgen/models/gan/a.py", "from jgen.data.config import Config", "models imports jgen.data.config"),
        ("jgen/generator.py", "from jgen.models.vae import vae", "generator imports jgen.models.vae"),
        ("jgen/experiment.py", "from jgen.generator import Generator", "experiment imports jgen.generator"),
        ("jgen/held_out.py", "from jgen import runs", "held_out imports jgen.runs"),
        ("jgen/core/a.py", "from . import keys", "relative import"),
        ("jgen/api.py", "import jax\nf = jax.pmap(g)", "pmap outside"),
        ("jgen/train/a.py", "from jax import pmap", "pmap outside"),
        ("jgen/api.py", "import jax._src.core", "private jax._src.core"),
        ("train.py", "def f():\n    from jax._src import core", "private jax._src"),
        ("jgen/api.py", "import tensorflow_datasets as tfds", "tensorflow_datasets at module top level"),
        ("train.py", "import tyro", "tyro at module top level"),
        (
            "jgen/a.py",
            "try:\n    import grain.python\nexcept ImportError:\n    pass",
            "grain.python at module top level",
        ),
        ("jgen/a.py", "class A:\n    from orbax import checkpoint", "orbax at module top level"),
        ("jgen/data/digits.py", "import tensorflow", "tensorflow at module top level"),
        ("jgen/utils.py", "", "utils.py"),
        ("jgen/a.py", "x = 1\n" * 501, "501 lines"),
        ("train.py", "x = 1\n" * 100, "100 lines"),
        ("jgen/a.py", "def f():\n" + "    x = 1\n" * 59, "f has 60 lines"),
        ("jgen/a.py", "class A:\n    def f(self):\n" + "        x = 1\n" * 59, "f has 60 lines"),
        ("tests/a.py", "x = 1\n" * 501, "501 lines"),
        ("tests/a.py", "import time\ntime.perf_counter()", "a clock is read"),
        ("tests/a.py", "import time\nstart = time.time()", "a clock is read"),
        ("tests/a.py", "from time import monotonic", "a clock is read"),
        ("tests/a.py", "import datetime\ndatetime.datetime.now()", "a clock is read"),
    ],
)
def test_the_checker_finds_what_breaks_a_rule(path, source, wanted):
    assert any(wanted in fault for fault in faults(path, source)), faults(path, source)


@pytest.mark.parametrize(
    "path,source",
    [
        ("jgen/core/a.py", "from jgen.core import keys\nfrom jgen.errors import require\nimport jax"),
        ("jgen/nn/a.py", "from jgen.prob import pixels\nfrom jgen.nn import unet"),
        ("jgen/models/gan/a.py", "from jgen.models.gan.b import f\nfrom jgen.samplers import diffusion"),
        ("jgen/train/a.py", "from jgen.core import parallel\nf = parallel.pmap(g)\nfrom jgen.data import config"),
        ("jgen/core/parallel.py", "import jax\nf = jax.pmap(g)"),
        ("jgen/data/digits.py", "import tensorflow_datasets as tfds"),
        ("jgen/a.py", "def f():\n    import tyro, orbax.checkpoint\n"),
        ("jgen/a.py", "x = 1\n" * 500),
        ("train.py", "x = 1\n" * 99),
        ("jgen/a.py", "def f():\n" + "    x = 1\n" * 58),
        ("tests/a.py", "def f():\n" + "    x = 1\n" * 99),
        ("tests/a.py", "import time\nwhile not there():\n    time.sleep(0.1)"),
        ("benchmarks/a.py", "import time\ntime.perf_counter()"),
    ],
)
def test_the_checker_lets_pass_what_keeps_the_rules(path, source):
    assert faults(path, source) == []


@pytest.mark.slow
def test_the_library_works_without_data_loaders_and_command_line(python):
    program = """
import sys
for name in ("tensorflow_datasets", "grain", "tyro"):
    sys.modules[name] = None
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
import jgen
from jgen.cli import import_config
from jgen.core import keys as rng
from jgen.core.model import ArraySpec, Context, DataSpec, ImageSpec
experiment = import_config(Path("configs/diffusion/ddpm.py")).get_config("tiny")
model = jgen.make(experiment, DataSpec(ImageSpec(8, 8, 1, 256), {"label": ArraySpec((), "int32", 10)}))
batch = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32), "index": np.arange(2)}
params, extra = jax.jit(model.init)(jax.random.key(0), batch, {})
ctx = Context(jnp.int32(0), extra=extra)
keys = rng.image_keys(jax.random.key(1), jnp.arange(2))
loss, _ = jax.jit(model.phases[0].loss)(params, ctx, keys, batch)
assert np.isfinite(loss)
images = jax.jit(model.sample)(params, ctx, keys, model.condition(batch))
assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
"""
    python("-c", program)


LOADED = """
import runpy, sys

program, *modules = sys.argv[1:]
sys.argv = [program, "--help"]
try:
    if program == "jgen":
        import jgen
    else:
        runpy.run_path(program, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *[name for name in modules if name in sys.modules])
"""
SLOW = {*LAZY, "optax", "torch", "sklearn", "scipy", "PIL", "matplotlib", "tokenizers", "tqdm", "jgen.train.loop"}


@pytest.mark.parametrize(
    "program,may_load",
    [
        ("jgen", set()),
        ("train.py", {"tyro"}),  # and flax, with the module of the system whose options it shows
        ("sample.py", {"tyro"}),
    ],
)
def test_the_start_loads_nothing_slow_and_starts_no_device(python, program, may_load):
    """Help comes in a second, most of it JAX's own import: slow modules wait, and so does the start of a device."""
    more = set() if program == "train.py" else {"flax", "jgen.models", "jgen.nn"}
    modules = sorted((SLOW | more) - may_load)
    out = python("-c", LOADED, program, *modules, JAX_PLATFORMS="no such platform").stdout
    assert out.splitlines()[-1].split() == ["loaded:"], out
