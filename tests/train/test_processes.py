"""One training by two processes, through train.py: a directory that one of them writes, stopped and gone on with."""

import json
import shutil
import signal
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from clusters import assert_ended_by_another, free_port, start_each, wait_for, wait_for_file
from conftest import ROOT, assert_user_mistake, final_arrays, mistake

import jgen
from jgen import cli, distributed
from jgen.core.files import lock
from jgen.train import checkpoints, run_directory

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


def test_processes_of_several_backends_are_told_before_jax_starts_its_devices(start_python, tmp_path):
    words = [*TINY, "--workdir", tmp_path / "run", "--distributed.coordinator", f"127.0.0.1:{free_port()}"]
    words += ["--distributed.num-processes", "2", "--distributed.process-id"]
    processes = [
        start_python(*words, str(number), JAX_PLATFORMS=platform) for number, platform in enumerate(("cpu", "cuda"))
    ]
    for code, _, errors in wait_for(processes):
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and "Traceback" not in errors, errors
        assert "processes of several backends: cpu in " in lines[0] and ", gpu in " in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("platforms", "plugins", "expected"),
    [
        ("", [], "cpu"),
        ("", ["xla_cuda12"], "gpu"),
        ("", ["xla_cuda13"], "gpu"),
        ("cuda,cpu", [], "gpu"),
        ("rocm", [], "gpu"),
        ("cpu", ["xla_cuda12"], "cpu"),
        ("tpu", [], "tpu"),
    ],
)
def test_what_jax_is_going_to_run_on_is_known_before_it_starts(monkeypatch, platforms, plugins, expected):
    named = [SimpleNamespace(name=name) for name in plugins]
    monkeypatch.setattr(distributed.importlib.metadata, "entry_points", lambda group: named)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert distributed.expected_platform() == expected


def test_a_process_whose_accelerator_is_not_found_says_so(monkeypatch):
    """JAX takes the CPU in its place, with a warning: the others, which have one, would wait."""
    monkeypatch.setattr(cli, "expected_platform", lambda: "gpu")
    cli.start_backend(several=False)
    mistake(lambda: cli.start_backend(several=True), "no gpu in process 0 of 1", "on CPU", "JAX_PLATFORMS=cpu")


def test_a_checkpoint_that_a_slow_disk_shows_late_is_waited_for(tmp_path):
    def finish(step):
        (tmp_path / str(step) / "state").mkdir(parents=True)
        (tmp_path / str(step) / "state" / "array").write_bytes(b"12")
        checkpoints.manifest_path(tmp_path, step).write_text(json.dumps(checkpoints.hash_tree(tmp_path / str(step))))

    finish(5)
    (tmp_path / "5" / "state" / "array").write_bytes(b"1")  # a part of the file
    writer = threading.Timer(0.7, (tmp_path / "5" / "state" / "array").write_bytes, (b"12",))
    writer.start()
    checkpoints.wait_until_seen(tmp_path, 5)
    writer.join()
    late = threading.Timer(0.7, finish, (10,))
    late.start()
    checkpoints.wait_until_seen(tmp_path, 10)
    late.join()
    words = ("process 0 of the training does not see the checkpoint", "after 0 s", "15 was not finished")
    mistake(lambda: checkpoints.wait_until_seen(tmp_path, 15, seconds=0.0), *words)


def test_code_that_a_commit_does_not_tell_apart_is_another(monkeypatch, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "jgen" / "train").mkdir(parents=True)
        (tmp_path / name / "jgen" / "train" / "run_directory.py").write_text(name)
    hashes = []
    for name in ("one", "other", "one"):
        monkeypatch.setattr(run_directory, "__file__", str(tmp_path / name / "jgen" / "train" / "run_directory.py"))
        hashes.append(run_directory.code_hash())
    assert hashes[0] == hashes[2] != hashes[1]
    assert "jgen's code" in run_directory.program_identity()


@pytest.mark.slow
def test_processes_of_other_code_are_told(start_python, tmp_path):
    """The second runs a copy whose only difference is a comment."""
    copy = tmp_path / "copy"
    for folder in ("jgen", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    with (copy / "jgen" / "errors.py").open("a") as file:
        file.write("# another\n")
    options = ["--workdir", tmp_path / "run", "--distributed.coordinator", f"127.0.0.1:{free_port()}"]
    options += ["--distributed.num-processes", "2", "--distributed.process-id"]
    processes = [start_python(*TINY, *options, "0")]
    other = [copy / "train.py", copy / TINY[1], *TINY[2:], *options, "1"]
    processes.append(start_python(*other, PYTHONPATH=str(copy)))
    for code, _, errors in wait_for(processes):
        assert code == 2 and "process 1 differs from process 0 in jgen's commit, jgen's code" in errors, errors


@pytest.mark.slow
@pytest.mark.long
def test_killed_processes_go_on_to_the_same_bits(start_python, python, tmp_path):
    """With as many processes, and as one process with as many devices."""
    often = ("--train.checkpoint-every", "20", "--train.keep", "100")
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    processes = start_two(start_python, killed, 100_000, *often)
    wait_for_file(killed / "checkpoints" / "20.sha256.json", processes)
    processes[0].kill()
    assert_ended_by_another(processes[1])
    steps = checkpoints.newest_good(killed / "checkpoints") + 7
    other = shutil.copytree(killed, tmp_path / "other")
    for run in (killed, straight):
        for code, _, errors in wait_for(start_two(start_python, run, steps, *often)):
            assert code == 0, errors
    python(*TINY, *often, "--train.steps", str(steps), "--workdir", other, devices=2)
    (arrays, metrics), (expected, wanted) = final_arrays(killed), final_arrays(straight)
    assert arrays.keys() == expected.keys() and metrics == wanted
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    for name, array in final_arrays(other)[0].items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


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
