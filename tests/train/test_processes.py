"""One training by two processes, through train.py: a directory that one of them writes, stopped and gone on with."""

import json
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from clusters import assert_ended_by_another, free_port, start_each, wait_for, wait_for_file
from conftest import assert_user_mistake, final_arrays, mistake

import jgen
from jgen import distributed
from jgen.core.files import lock
from jgen.train import checkpoints

TINY = ["train.py", "configs/vae/vae.py:tiny", "--train.sample-every", "0", "--train.log-every", "5"]


def start_two(start_python, run, steps, *options, devices=1, of_one=()):
    """Two processes that train together to so many steps; `of_one`: options of the second alone."""
    words = [*TINY, "--train.steps", str(steps), "--workdir", run, *options]
    return start_each(start_python, words, devices=devices, of_one=of_one)


@pytest.mark.slow
def test_two_processes_train_stop_and_go_on_as_one_does(python, start_python, tmp_path):
    run, alone = tmp_path / "two", tmp_path / "one"
    processes = start_two(start_python, run, 4000)
    wait_for_file(run / "metrics.jsonl", processes)
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


def test_the_outcome_is_one_however_devices_are_spread_over_processes(python, start_python, tmp_path):
    """Two processes of two devices, gone on with by one process of four, beside one of one."""
    spread, alone = tmp_path / "spread", tmp_path / "alone"
    often = ("--train.log-every", "6", "--train.validate-every", "6", "--train.checkpoint-every", "6")
    for code, _, errors in wait_for(start_two(start_python, spread, 6, *often, devices=2)):
        assert code == 0, errors
    assert checkpoints.newest_good(spread / "checkpoints") == 6
    python(*TINY, *often, "--train.steps", "12", "--workdir", spread, devices=4)
    python(*TINY, *often, "--train.steps", "12", "--workdir", alone)
    (arrays, _), (expected, _) = final_arrays(spread), final_arrays(alone)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-3, atol=1e-4, err_msg=name)

    def lines(run):
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert [(line["step"], line["split"]) for line in lines(alone)] == [
        (step, split) for step in (6, 12) for split in ("train", "validation")
    ]
    for line, expected_line in zip(lines(spread), lines(alone), strict=True):
        assert line.keys() == expected_line.keys()
        for name, value in expected_line.items():
            if name in ("step", "loss", "elbo"):
                np.testing.assert_allclose(line[name], value, rtol=1e-4)
    drawn = [jgen.load(run).sample(jax.random.key(0), 8).astype(int) for run in (spread, alone)]
    assert np.mean(np.abs(drawn[0] - drawn[1]) > 1) < 0.02


# Without the first, the second ends at once; without the second, the first after 30 s.
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_the_other_with_one_line(start_python, tmp_path, killed):
    processes = start_two(start_python, tmp_path / "run", 100_000)
    wait_for_file(tmp_path / "run" / "metrics.jsonl", processes)
    processes[killed].kill()
    assert_ended_by_another(processes[1 - killed])


def test_processes_that_were_started_unlike_are_told(start_python, tmp_path):
    outcomes = wait_for(start_two(start_python, tmp_path / "run", 10, of_one=("--seed", "7")))
    for number, (code, _, errors) in enumerate(outcomes):
        assert code == 2 and f"error: process 1 differs from process 0 in seed; here, in process {number}" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "devices", "words"),
    [("gan/dcgan", 1, "process 1 does something else than process 0"), ("vae/vae", 2, "of the 3 devices")],
)
def test_processes_of_other_systems_or_devices_are_told(start_python, tmp_path, second, devices, words):
    address = f"127.0.0.1:{free_port()}"
    options = ["--workdir", tmp_path / "run", "--distributed.coordinator", address, "--distributed.num-processes", "2"]
    processes = []
    for number, (name, num) in enumerate((("vae/vae", 1), (second, devices))):
        own = [f"configs/{name}.py:tiny", *options, "--distributed.process-id", str(number)]
        processes.append(start_python("train.py", *own, devices=num))
    for code, _, errors in wait_for(processes):
        assert code == 2 and "error: " in errors and words in errors, errors


@pytest.mark.slow
def test_a_second_cluster_in_a_run_directory_is_refused(start_python, tmp_path):
    with lock(tmp_path / "run", "is training in", "wait"):
        outcomes = wait_for(start_two(start_python, tmp_path / "run", 10))
    for code, _, errors in outcomes:
        assert code == 2 and "another process is training in" in errors, errors


@pytest.mark.parametrize("number", ["0", "1"])
def test_processes_that_do_not_come_are_waited_for_as_long_as_is_said(python, number):
    options = {"coordinator": f"127.0.0.1:{free_port()}", "num-processes": "2", "process-id": number, "timeout": "1"}
    words = [word for name, value in options.items() for word in (f"--distributed.{name}", value)]
    done = python(*TINY, *words, check=False)
    first, *rest = done.stderr.splitlines()
    assert "waiting for the others for up to 1 s" in first
    assert_user_mistake(
        SimpleNamespace(returncode=done.returncode, stderr="\n".join(rest)), "did not answer within 1 s"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("host", "2", "0"), ("coordinator is 'host'", "HOST:PORT")),
        (("", "2", "0"), ("coordinator is ''",)),
        (("host:1", "0", "0"), ("num-processes is 0",)),
        (("host:1", "two", "0"), ("num-processes is 'two'",)),
        (("host:1", "2", "-1"), ("process-id is '-1'",)),
        (("host:1", "2", "2"), ("process-id is 2", "below")),
    ],
)
def test_what_does_not_say_who_takes_part_is_a_mistake(given, words):
    mistake(lambda: distributed.given_processes(*given, "--distributed."), *words)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "2"}, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # in a job's own script, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_a_cluster_is_joined_where_it_has_several_processes(monkeypatch, environment, joins):
    monkeypatch.setattr(distributed, "on_tpu", lambda: False)
    for name in (*SLURM, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.in_cluster() == joins
