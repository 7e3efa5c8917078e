"""Processes that decode a streamed set."""

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import final_arrays

from jgen.data import dataset as datasets
from jgen.data.batches import train_batches
from jgen.data.config import Config
from jgen.data.dataset import Split
from jgen.errors import UserError

pytest.importorskip("grain")


@pytest.fixture
def split(prepared, own_cache, monkeypatch):
    monkeypatch.setattr(datasets, "memory_limit", lambda: 0)
    return datasets.load(Config(name="petite", dir=str(prepared), size=5)).splits["train"]


@pytest.mark.slow
def test_batches_are_those_of_the_thread_wherever_they_begin(split):
    rows = np.array([0, 3, 4])
    whole = list(train_batches(split, seed=3, batch_size=5, start=0, stop=6, rows=rows))
    decoded = train_batches(split, seed=3, batch_size=5, start=1, stop=6, rows=rows, workers=2)
    for one, other in zip(whole[1:], decoded, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert not multiprocessing.active_children()


def test_what_is_in_memory_needs_no_processes():
    split = Split(4, lambda positions: {"image": positions})
    batches = train_batches(split, seed=0, batch_size=2, start=0, stop=3, workers=2)
    next(batches)
    assert not multiprocessing.active_children()


def test_a_record_that_cannot_be_read_is_one_line_and_no_process_stays():
    def fetch(positions):
        raise UserError("record 7 cannot be read")

    batches = train_batches(Split(4, fetch, streamed=True), seed=0, batch_size=2, start=0, stop=3, workers=1)
    with pytest.raises(UserError, match="^record 7 cannot be read$"):
        next(batches)
    assert not multiprocessing.active_children()


KILLED = """
import multiprocessing
import numpy as np
from jgen.data.batches import train_batches
from jgen.data.dataset import Split
if __name__ == "__main__":
    split = Split(4, lambda positions: {"image": np.asarray(positions)}, streamed=True)
    batches = train_batches(split, seed=0, batch_size=2, start=0, stop=10**6, workers=1)
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    for _ in batches:
        pass
"""


def test_processes_end_with_the_one_that_trains_even_if_it_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    (child,) = map(int, process.stdout.readline().split())
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(400):
        if not runs(child):
            return
        time.sleep(0.05)
    raise AssertionError("the process that decodes is still there")


def runs(pid):
    """Whether a process has not ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


STREAMED = """
import train
from jgen import cli
from jgen.data import dataset
dataset.memory_limit = lambda: 0
if __name__ == "__main__":
    cli.main(train.command)
"""


@pytest.mark.slow
def test_a_streamed_training_that_is_killed_ends_in_the_same_bits(prepared, start_python, tmp_path):
    (tmp_path / "streamed.py").write_text(STREAMED)
    args = ["configs/vae/vae.py:tiny", "--data.name", "petite", "--data.dir", str(prepared), "--data.size", "8"]
    args += ["--train.steps", "300", "--train.checkpoint-every", "20", "--train.log-every", "5"]
    args += ["--train.validate-every", "100", "--train.sample-every", "0", "--train.data-workers", "2", "--workdir"]

    def begin(run):
        return start_python(str(tmp_path / "streamed.py"), *args, str(run))

    def finish(run):
        process = begin(run)
        assert process.communicate() and process.returncode == 0

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    assert '"streamed-' in (whole / "config.json").read_text()  # the hash of data that is not held in memory
    metrics = broken / "metrics.jsonl"
    for _ in range(4):
        before = metrics.stat().st_size if metrics.exists() else 0
        process = begin(broken)
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > before):
            time.sleep(0.005)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(broken)
    (arrays, lines), (again, lines_again) = final_arrays(whole), final_arrays(broken)
    assert lines == lines_again and arrays.keys() == again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
