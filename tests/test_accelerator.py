"""The benchmark of an accelerator: its counts, its comparison, its processes, and a part of it on CPU."""

import json
import math
import sys
from functools import partial
from threading import Lock
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import accelerator
from on_device import cases, costs, fast, report, right, servers


def test_operations_of_matrix_products_and_convolutions_are_the_formulas():
    x, w, kernel = jnp.ones((4, 8)), jnp.ones((8, 16)), jnp.ones((3, 3, 5, 7))
    image = jnp.ones((2, 6, 6, 5))
    dense = 2 * 4 * 8 * 16
    assert costs.matrix_flops(jnp.dot, x, w) == dense
    assert costs.matrix_flops(jax.jit(jax.vmap(jnp.dot)), jnp.ones((3, 4, 8)), jnp.ones((3, 8, 16))) == 3 * dense
    assert costs.matrix_flops(jax.grad(lambda w: jnp.sum(jnp.sin(x @ w))), w) == 2 * dense  # of w alone

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ w @ w.T, None), x, length=5)[0]

    assert costs.matrix_flops(loop, x) == 5 * 2 * dense

    def convolve(x, kernel, stride=1):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    once = 2 * (2 * 6 * 6 * 7) * (3 * 3 * 5)
    assert costs.matrix_flops(convolve, image, kernel) == once
    # With strides, the gradient of the input multiplies with zeros between the pixels: they are not counted.
    half = once / 4
    forward_and_back = jax.grad(lambda x: jnp.sum(convolve(x, kernel, 2) ** 2))
    assert costs.matrix_flops(forward_and_back, image) == pytest.approx(2 * half, rel=0.01)


def event(name, duration, **stats):
    return SimpleNamespace(name=name, duration_ns=duration, stats=list(stats.items()))


def test_the_largest_costs_are_those_of_the_devices_kernels():
    streams = [
        SimpleNamespace(name="Stream #1", events=[event("conv_kernel<float>(int)", 6e6, hlo_op="cudnn-conv.12")]),
        SimpleNamespace(name="Stream #2", events=[event("conv_kernel<int>", 2e6, hlo_op="cudnn-conv.3")]),
        SimpleNamespace(name="Stream #3", events=[event("loop_add_fusion_7", 1e6, hlo_op="loop_add_fusion_7")]),
        SimpleNamespace(name="XLA Ops", events=[event("counted twice", 9e6)]),
    ]
    planes = [SimpleNamespace(name="/device:GPU:0", lines=streams), SimpleNamespace(name="/host:CPU", lines=streams)]
    outcome = costs.summary(SimpleNamespace(planes=planes), runs=2, wall=0.018)
    assert [cost["name"] for cost in outcome["costs"]] == ["cudnn-conv [conv_kernel]", "loop_add_fusion"]
    assert outcome["costs"][0]["ms"] == 4 and math.isclose(outcome["costs"][0]["share"], 8 / 9)
    assert math.isclose(outcome["busy"], 0.5)
    assert "missing" in costs.summary(SimpleNamespace(planes=planes[1:]), 1, 1.0)


def of_device(**changes):
    held = {"loss": np.ones(2), "gradient": np.arange(9.0), "images": np.full((8, 4, 4, 1), 7, np.uint8)}
    held |= {f"{name} again": array for name, array in held.items()}
    return {**held, **changes}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"loss": np.array([1.0, 1.001])}, "loss differs by 1.0e-03"),
        ({"loss": np.array([1.0, np.nan])}, "loss differs by nan"),
        ({"gradient": np.arange(9.0)[::-1]}, "gradient differs"),
        ({"gradient": 1.01 * np.arange(9.0)}, "gradient_norm differs by 1.0e-02"),
        ({"images": np.full((8, 4, 4, 1), 9, np.uint8)}, "pixels differs by 1.0e+00"),
        ({"images again": np.full((8, 4, 4, 1), 8, np.uint8)}, "images is another in a second run"),
    ],
)
def test_what_is_not_as_on_the_cpu_is_told(changes, word):
    wrong = right.compare(of_device(**changes), of_device(), "float32")["wrong"]
    assert any(word in each for each in wrong) if word else not wrong, wrong


def test_a_process_that_fails_hangs_or_ends_costs_one_request(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "PATHS", [str(tmp_path), *servers.PATHS])
    package = tmp_path / "on_device"
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'benchmarks' / 'on_device')!r})")
    (package / "odd.py").write_text(
        "import os, time\n"
        "def add(a, b): print('noise'); return a + b\n"
        "def wait(): time.sleep(60)\n"
        "def end(): os.write(2, b'no memory'); os._exit(3)\n"
        "def lack(): import no_such_package.part\n"
        "def err(): import on_device.no_such_module\n"
    )
    server = servers.Server(sys.executable, tmp_path / "log")
    try:
        assert server.ask("odd.add", 60, a=1, b=2) == 3
        for request, word in (("odd.add", "TypeError"), ("odd.end", "code 3: no memory"), ("odd.wait", "after 1 s")):
            with pytest.raises(servers.Failed, match=word):
                server.ask(request, 1 if word == "after 1 s" else 60)
            assert server.ask("odd.add", 60, a=2, b=2) == 4
        with pytest.raises(servers.Late):
            server.ask("odd.wait", 0.1)
        with pytest.raises(servers.Missing, match="^no_such_package$"):
            server.ask("odd.lack", 60)
        with pytest.raises(servers.Failed, match="ModuleNotFoundError") as caught:  # of this repository's own
            server.ask("odd.err", 60)
        assert not isinstance(caught.value, servers.Missing)
    finally:
        server.close()


@pytest.mark.slow
def test_the_small_run_leaves_its_record_and_a_table(python, tmp_path):
    out = tmp_path / "record.json"
    done = python("benchmarks/accelerator.py", "--small", "--minutes", "3", "--only", "vae", "--out", out)
    record = json.loads(out.read_text())
    facts = record["fast"]["vae"]["jgen"]["tasks"]["train"]
    assert min(facts["seconds"]) > 0 and facts["flops"] > 1e5 and record["backend"] == "cpu"
    assert "vae" in done.stdout and "of peak" in done.stdout and not report.is_wrong(record)
    assert record["command"][0].endswith(f"--out {out}")


def test_what_fails_on_an_accelerator_is_tried_without_cudnns_kernels():
    asked = []

    class Server:
        def ask(self, request, seconds, /, **arguments):
            asked.append(request)
            if asked == ["fast.prepare"]:
                raise servers.Failed("no engine")
            return {"tasks": {}}

    session = SimpleNamespace(record={"backend": "gpu"}, left=lambda reserve: 100.0, say=lambda text: None)
    made = accelerator.prepare(session, Server(), {}, 0.0)
    assert made == {"tasks": {}, "plain_after": "no engine"}
    assert asked == ["fast.prepare", "fast.use_plain_forms", "fast.prepare"]
    session.record["backend"] = "cpu"
    asked.clear()
    with pytest.raises(servers.Failed, match="no engine"):
        accelerator.prepare(session, Server(), {}, 0.0)


def test_a_system_whose_package_is_missing_is_passed_over_and_named():
    class Server:
        def ask(self, request, seconds, /, **arguments):
            if request == "right.systems":
                return [["ffjord", "float32"], ["vae", "float32"]]
            if arguments["name"] == "ffjord":
                raise servers.Missing("diffrax")
            return {"wrong": [], "same_bits_twice": True, "loss": 0.0, "gradient_norm": 0.0, "gradient": 0.0}

        def close(self):
            pass

    told = []
    session = SimpleNamespace(
        args=SimpleNamespace(small=True), folder="", record={"backend": "cpu", "right": {}, "resume": {}}, lock=Lock()
    )
    session.left, session.say, session.write = lambda reserve: 100.0, told.append, lambda: None
    session.server = lambda name, **environment: Server()
    accelerator.check_right(session, 0.0)
    assert told == ["ffjord float32: passed over, diffrax is not installed", "right: 1 of 1 as on the CPU"]
    lines = report.right_lines(session.record)
    assert lines[0] == "passed over in float32: ffjord, as diffrax is not installed" and "1 of 1 systems" in lines[1]
    assert not report.is_wrong({**session.record, "loop": {}, "fast": {}})


def test_what_there_was_no_time_for_is_named_and_not_wrong():
    class Server:
        def ask(self, request, seconds, /, **arguments):
            if request == "right.systems":
                return [["dcgan", "float32"], ["vae", "float32"]]
            if request == "right.device" and arguments["name"] == "vae":
                raise servers.Late("stopped after 3 s")
            return {"wrong": [], "same_bits_twice": True, "loss": 0.0, "gradient_norm": 0.0, "gradient": 0.0}

        def close(self):
            pass

    told, args = [], SimpleNamespace(small=True)
    session = SimpleNamespace(args=args, folder="", record={"backend": "cpu", "right": {}, "resume": {}}, lock=Lock())
    session.left, session.say, session.write = lambda reserve: 100.0, told.append, lambda: None
    session.server = lambda name, **environment: Server()
    accelerator.check_right(session, 0.0)
    assert told[0] == "vae float32: stopped after 3 s" and told[1].endswith("1 of 1 as on the CPU; 1 not reached")
    late = accelerator.outcome_of(servers.Late("stopped after 3 s"))
    entry = {"jgen": late, "torch": {}, "note": "", "precision": "float32", "goals": {}}
    record = {**session.record, "resume": late, "loop": {"ddpm": late}, "fast": {"vae": entry}}
    record |= {"device": "a GPU", "peak_tflops": dict.fromkeys(("float32", "tf32", "bfloat16"), 1.0)}
    record |= {"copy_gb_per_second": 1.0, "versions": {"jax": "0"}, "small": True}
    assert not report.is_wrong(record)
    lines = report.table(record).splitlines()
    for start in ("not reached: vae float32", "resuming: stopped", "vae: jgen stopped", "loop ddpm: stopped after 3 s"):
        assert any(line.startswith(start) for line in lines), lines
    assert "failed" in accelerator.outcome_of(servers.Failed("no engine"))


def test_goals_are_those_of_each_precision():
    goals = {row["name"]: row["goals"] for row in fast.plan(small=False)}
    assert goals["unet_bfloat16"] == {"train ratio": 0.9, "train use": 0.35, "ddim ratio": 0.8}
    assert goals["unet_float32"] == {"train ratio": 0.9, "ddim ratio": 0.8}
    assert goals["dit_xl"] == {"train ratio": 0.9, "train use": 0.5}
    record = {"backend": "gpu", "small": False}
    assert report.goal_of(record, {"goals": goals["dit_xl"]}, "train", 0.95, 0.51) == "<= 0.9 NO, >= 50% yes"


def test_the_time_of_every_case_is_broken_down_by_the_profiler():
    asked = []

    class Server:
        def ask(self, request, seconds, /, **arguments):
            asked.append((request, arguments.get("case")))
            answers = {"fast.plan": fast.plan(small=False), "fast.measure": [0.1], "fast.trace": {"missing": "a GPU"}}
            facts = {"images": 1, "flops": 1.0, "first_seconds": 1.0, "program_gib": None}
            return answers.get(request, {"tasks": {"train": dict(facts)}})

        def close(self):
            pass

    args = SimpleNamespace(small=False, only=["dit_b", "adm"])
    session = SimpleNamespace(args=args, record={"fast": {}, "backend": "gpu"}, folder="", lock=Lock())
    session.left, session.say, session.write = lambda reserve: 100.0, lambda text: None, lambda: None
    session.wants = partial(accelerator.Session.wants, session)
    session.server = lambda name, **environment: Server()
    accelerator.time_cases(session, Server(), 0.0)
    assert list(session.record["fast"]) == ["dit_b_bfloat16", "dit_b_float32", "adm"]
    assert all(entry["trace"] == {"missing": "a GPU"} for entry in session.record["fast"].values())


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow_datasets", "grain", "tyro", "diffrax"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.slow
@pytest.mark.long
def test_it_runs_where_packages_of_data_and_options_are_absent(python, tmp_path):
    """Each part that is named in its own processes: they see no tensorflow-datasets, grain, tyro or diffrax."""
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    out = tmp_path / "record.json"
    words = ["benchmarks/accelerator.py", "--small", "--minutes", "5", "--out", out]
    python(*words, "--only", "loop,dit_xl,adm", PYTHONPATH=str(tmp_path))
    record = json.loads(out.read_text())
    assert set(record["fast"]) == {"dit_xl", "adm"} and set(record["loop"]) == {"ddpm", "vae"}
    assert not report.is_wrong(record) and not record["right"]
    python(*words, "--only", "right", PYTHONPATH=str(tmp_path))
    record = json.loads(out.read_text())
    assert set(record["loop"]) == {"ddpm", "vae"} and record["resume"]["same_bits"]  # the record is added to
    assert record["right"] and not report.is_wrong(record)


@pytest.mark.slow
def test_the_flags_of_the_document_are_those_of_this_jaxlib(python):
    """XLA ends a process that is given one it does not know."""
    text = (ROOT / "docs" / "accelerators.md").read_text()
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `--xla")]
    assert "--xla_gpu_deterministic_ops=true" in rows and len(rows) > 3
    start = "import jax, os; os.environ['XLA_FLAGS'] = {!r}; print(jax.devices())"
    assert "Cpu" in python("-c", start.format(" ".join(rows))).stdout
    unknown = python("-c", start.format("--xla_gpu_no_such_flag=true"), check=False)
    assert unknown.returncode != 0 and "xla_gpu_no_such_flag" in unknown.stderr


def test_every_case_has_its_side():
    from on_device import jgen_sides

    assert set(jgen_sides.SIDES) == set(cases.CASES)
