"""One training by two processes, through train.py: a directory that one of them writes, stopped and gone on with."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from jgen.train import checkpoints

TINY = ["train.py", "configs/vae/vae.py:tiny", "--train.sample-every", "0", "--train.log-every", "5"]


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start_two(start_python, run, steps):
    """Two processes of one device each that train together to so many steps."""
    together = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    words = [*TINY, "--train.steps", str(steps), "--workdir", run]
    return [start_python(*words, JAX_PROCESS_ID=str(number), **together) for number in range(2)]


def wait_for(processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, outputs)]


@pytest.mark.slow
def test_two_processes_train_stop_and_go_on_as_one_does(python, start_python, tmp_path):
    run, alone = tmp_path / "two", tmp_path / "one"
    processes = start_two(start_python, run, 4000)
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert all(process.poll() is None for process in processes), wait_for(processes)
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for code, _, errors in wait_for(processes):
        assert code == 128 + signal.SIGTERM and "saved" in errors, errors
    stopped = checkpoints.newest_good(run / "checkpoints")
    assert stopped is not None and stopped < 4000 and stopped % 5 == 0
    steps = stopped + 10
    (code, out, errors), other = wait_for(start_two(start_python, run, steps))
    assert code == 0 and f"resuming at step {stopped}" in out, errors
    assert other[0] == 0 and "resuming" not in other[1]
    python(*TINY, "--train.steps", str(steps), "--workdir", alone)

    def losses(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["split"] == "train"]

    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-3)
    assert (run / "samples" / f"step_{steps:08d}.png").is_file() and jax.process_count() == 1
