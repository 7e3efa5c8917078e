"""The programs that `python -m jgen.compare` runs: how they fail, and how a signal reaches them."""

import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from pretended import ALONE

from jgen.compare import processes


def test_a_program_that_is_killed_says_so(tmp_path):
    with pytest.raises(processes.Failed, match="killed by signal 9: 10 of 20"):
        processes.run(["-c", "import os; print('10 of 20', flush=True); os.kill(os.getpid(), 9)"], tmp_path / "log")


def test_an_error_of_a_program_is_its_last_line(tmp_path):
    with pytest.raises(processes.Failed, match="there is no configuration nowhere.py"):
        processes.run([str(ROOT / "train.py"), "nowhere.py"], tmp_path / "log")
    assert "nowhere.py" in (tmp_path / "log").read_text()


CHILD = """
import signal, sys, time
def note(number, frame):
    print("received", number, flush=True)
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
print("ready", flush=True)
time.sleep(60)
"""


PARENT = """
import signal, sys
from pathlib import Path
from jgen.compare import __main__ as compare
from jgen.compare import processes, stages
child, log, number, system = sys.argv[1:]
signal.signal(int(number), signal.SIG_DFL)  # as from a terminal, also where the tests run under nohup
stages.Comparison.run = lambda self: processes.run(["-c", child], Path(log))
sys.exit(compare.command(["--minutes", "1", "--systems", system, "--workdir", str(Path(log).parent)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number,code,passed_on", [(1, 129, 15), (2, 130, 2), (15, 143, 15)])
def test_a_signal_is_passed_on_once(cache, tmp_path, number, code, passed_on):
    log = tmp_path / "log"
    command = [sys.executable, "-c", PARENT, CHILD, str(log), str(number), ALONE.name]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (log.exists() and "ready" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    output = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code and output.count("received") == 1, output
    assert f"received {passed_on}" in output and "go on" in output


@pytest.mark.slow
def test_a_signal_lets_the_training_save(cache, tmp_path):
    """Stopped in its first training, which saves, and says how to go on."""
    number, code = 15, 143
    args = ["--data", "tiny", "--minutes", "60", "--seeds", "1", "--systems", ALONE.name, "--sizes", "8"]
    folder = tmp_path / ALONE.name
    folder.mkdir()
    own = {"step_seconds": 0.5, "likelihood": "lower_bound"}
    measured = {"config": "", "environment": {}, "own": own, "sizes": {"8": {"unfit": ""}}}
    (folder / "measure.json").write_text(json.dumps(measured))
    # It hears the signal as from a terminal, also where the tests themselves run under nohup.
    program = "import runpy, signal, sys; signal.signal(int(sys.argv.pop(1)), signal.SIG_DFL);"
    program += "runpy.run_module('jgen.compare', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", program, str(number), *args, "--workdir", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    metrics = folder / "seed0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    output = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code and "stopped at step" in output and "go on" in output
    assert any((folder / "seed0" / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    "output,wanted",
    [
        ("10 of 20\nerror: the disk is full\n", "the disk is full"),
        (
            "Traceback ...\n  File x\nValueError: no options\n-----\nFor simplicity, JAX has removed",
            "ValueError: no options",
        ),
        ("jax.errors.JaxRuntimeError: out of memory\n", "jax.errors.JaxRuntimeError: out of memory"),
        ("Killed\n", "Killed"),
        ("", ""),
    ],
)
def test_a_failure_is_told_by_its_reason(output, wanted):
    assert processes.reason(output) == wanted
