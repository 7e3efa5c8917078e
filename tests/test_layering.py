"""The direction of imports, by reading the source."""

import ast
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

ALLOWED = {  # what a package of jgen may import of jgen, beside itself
    "core": {"errors"},
    "prob": {"core", "errors"},
    "nn": {"core", "prob", "errors"},
    "samplers": {"core", "prob", "nn", "errors"},
    "models": {"core", "prob", "nn", "samplers", "errors"},
    "data": {"core", "prob", "errors"},
    "train": {"core", "prob", "data", "errors"},
    "metrics": {"core", "prob", "errors"},
    "errors": set(),
}
LAZY = {"tensorflow_datasets", "tensorflow", "grain", "tyro", "orbax", "sklearn", "tensorboardX"}
SOURCES = sorted((ROOT / "jgen").rglob("*.py"))


def imports(source: str, top_level_only: bool = False) -> set[str]:
    """Dotted names that a source imports."""
    tree = ast.parse(source)
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(package: str, family: str | None, source: str) -> list[str]:
    """Imports that a file of `jgen/<package>` may not have."""
    bad = []
    for name in sorted(imports(source)):
        if name.startswith("jax._src"):
            bad.append(name)
        parts = name.split(".")
        if parts[0] == "configs":
            bad.append(name)
        if parts[0] != "jgen" or package not in ALLOWED:
            continue
        if parts[1] != package and parts[1] not in ALLOWED[package]:
            bad.append(name)
        if package == "models" and parts[1] == "models" and parts[2] != family:
            bad.append(name)
    return bad


def test_the_check_can_fail():
    assert violations("core", None, "from jgen.nn.unet import UNet")
    assert violations("models", "flow", "import jgen.models.vae.vae")
    assert violations("prob", None, "def f():\n    from jax._src import core")
    assert not violations("models", "vae", "from jgen.models.vae import layers\nfrom jgen.nn.unet import UNet")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    parts = path.relative_to(ROOT / "jgen").parts
    package = parts[0].removesuffix(".py")
    source = path.read_text()
    assert not violations(package, parts[1] if len(parts) > 2 else None, source)
    heavy = {name for name in imports(source, top_level_only=True) if name.split(".")[0] in LAZY}
    assert not heavy or path.name == "digits.py", heavy
    if path != ROOT / "jgen" / "core" / "parallel.py":
        assert "jax.pmap" not in source and not any(
            n.endswith(("pmap", "shard_map")) and n.startswith("jax") for n in imports(source)
        )
    assert path.name != "utils.py"
    assert len(source.splitlines()) <= 500


def test_scripts_are_short():
    for name in ("train.py", "sample.py"):
        assert len((ROOT / name).read_text().splitlines()) < 100


WITHOUT = """
import sys
for name in ("tensorflow_datasets", "grain", "tyro", "tensorflow"):
    sys.modules[name] = None
import jax, jax.numpy as jnp, jgen
from jgen.core.model import Context, ImageSpec
from jgen.core.keys import image_keys
from jgen.models.diffusion import ddpm
config = ddpm.Config(channels=(8,), attention=(), blocks=1, head_dim=8, groups=4, num_timesteps=4)
model = jgen.make(jgen.Experiment(model=config), ImageSpec(4, 4, 1, 3, 256))
batch = {"image": jnp.zeros((2, 4, 4, 1), jnp.uint8), "label": jnp.arange(2), "index": jnp.arange(2)}
params, extra = model.init(jax.random.key(0), batch)
ctx, keys = Context(0, params, extra, {}), image_keys(jax.random.key(1), jnp.arange(2))
assert jnp.isfinite(model.phases[0].loss(params, ctx, keys, batch)[0])
assert model.sample(params, ctx, keys, batch["label"], steps=2).shape == (2, 4, 4, 1)
"""


def test_works_without_data_and_command_line_packages(python):
    python("-c", WITHOUT)


@pytest.mark.parametrize("args", [["-c", "import jgen"], ["train.py", "--help"]], ids=["import", "help"])
def test_starts_within_two_seconds(args):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *args], cwd=ROOT, env=environment, check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
        if best < 2:
            break
    assert best < 2
