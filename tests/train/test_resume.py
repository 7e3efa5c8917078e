"""A run that is killed again and again ends in the same bits as one that is not."""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK, ROOT, assert_user_mistake, final_arrays
from contract_cases import SYSTEMS, make_case, train_below

import train
from jgen import api, runs
from jgen.errors import UserError
from jgen.train import checkpoints, loop, run_directory
from jgen.train.step import TrainState

TINY = ["train.py", "configs/vae/vae.py:tiny", "--train.checkpoint-every", "10", "--train.log-every", "3"]
TINY += ["--train.validate-every", "50", "--train.sample-every", "0"]


def start(args, devices):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def wait_until(holds, process=None, every=0.005):
    """Returns when something holds, when the process has ended, or after some two minutes."""
    for _ in range(round(120 / every)):
        if holds() or (process is not None and process.poll() is not None):
            return
        time.sleep(every)


def kill_in_the_middle(args, run, devices, rng, while_saving, in_start_up=False):
    """Starts a training, lets it get on a little, and kills it: (whether it did, whether within a save)."""
    metrics, folder = run / "metrics.jsonl", run / "checkpoints"

    def unfinished():
        return {p for p in folder.glob("[0-9]*") if p.is_dir() and not Path(f"{p}.sha256.json").exists()}

    there = unfinished()
    before = metrics.stat().st_size if metrics.exists() else 0
    process = start(args, devices)
    if in_start_up:
        time.sleep(rng.uniform(0.5, 4.0))
    else:
        wait_until(lambda: metrics.exists() and metrics.stat().st_size > before, process)  # it is training
    time.sleep(rng.uniform(0, 0.4))
    if while_saving:
        wait_until(lambda: any(folder.glob("*orbax-checkpoint-tmp*")), process, every=0.0005)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return killed, killed and bool(unfinished() - there)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_training_ends_in_the_same_bits(python, tmp_path, devices):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    args = [*TINY, "--train.steps", "400", "--train.sample-every", "50", "--workdir"]
    python(*args, unbroken, devices=devices)
    rng = random.Random(devices)
    kills, in_a_save = 0, 0
    for attempt in range(12):
        how = {"while_saving": attempt % 2 == 1, "in_start_up": attempt == 2}
        killed, saving = kill_in_the_middle([*args, broken], broken, devices, rng, **how)
        kills, in_a_save = kills + killed, in_a_save + saving
        if kills >= 5 and in_a_save:
            break
    assert kills >= 5 and in_a_save
    assert not (broken / "samples" / "step_00000400.png").exists()  # it was not done before the last kill
    (broken / "samples").mkdir(exist_ok=True)
    (broken / "samples" / ".1-step_00000250.png").write_bytes(b"")  # as a kill while one is written leaves it
    others = broken / ".1-evaluation.json"  # of a program that scores the run meanwhile
    others.write_bytes(b"")
    python(*args, broken, devices=devices)
    arrays, lines = final_arrays(unbroken)
    arrays_again, lines_again = final_arrays(broken)
    assert lines == lines_again
    assert arrays.keys() == arrays_again.keys() and any("ema" in name for name in arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, arrays_again[name], err_msg=name)
    assert others.exists()
    grids = [{p.name: p.read_bytes() for p in (run / "samples").iterdir()} for run in (unbroken, broken)]
    assert grids[0] == grids[1] and len(grids[0]) == 8
    if devices == 1:
        assert "finished at step 400" in python(*args, broken).stdout


SAMPLE = """
import sys
import jax, numpy as np
import jgen
np.save(sys.argv[2], jgen.load(sys.argv[1]).sample(jax.random.key(0), 4, batch_size=64))
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", SYSTEMS.values(), ids=SYSTEMS)
def test_every_system_ends_in_the_same_bits_after_kills(python, tmp_path, path):
    """Checkpoints at odd steps: kills fall into the middle of repeats and lazy cycles too."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    args = ["train.py", f"{path.relative_to(ROOT)}:tiny", "--train.checkpoint-every", "7", "--train.log-every", "3"]
    args += ["--train.validate-every", "0", "--train.sample-every", "0", "--train.steps", "300"]
    args += train_below(python, tmp_path, path)
    if path.stem == "dcgan":
        args += ["--model.disc-norm", "spectral", "--model.regulariser", "r1", "--model.penalty-every", "4"]
    if path.stem == "progan":
        args += ["--model.grow-steps", "80"]  # its growth lasts to the second half
    args.append("--workdir")
    python(*args, unbroken)
    rng = random.Random(0)
    assert sum(kill_in_the_middle([*args, broken], broken, 1, rng, while_saving=i == 1)[0] for i in range(2)) > 0
    python(*args, broken)
    (arrays, lines), (arrays_again, lines_again) = final_arrays(unbroken), final_arrays(broken)
    assert lines == lines_again and arrays.keys() == arrays_again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, arrays_again[name], err_msg=name)
    if make_case(path.stem).model.sample is None:
        return
    python("sample.py", broken, "--num", "4", "--out", tmp_path / "x.npz")
    python("-c", SAMPLE, broken, tmp_path / "y.npy")
    images = np.load(tmp_path / "x.npz")["images"]
    assert images.shape == (4, 8, 8, 1) and np.unique(images, axis=0).shape == images.shape
    np.testing.assert_array_equal(images, np.load(tmp_path / "y.npy"))


@pytest.fixture(scope="module")
def short_run(cache, tmp_path_factory):
    """A finished run of 30 steps with checkpoints at 20 and 30."""
    run = tmp_path_factory.mktemp("runs") / "short"
    command = [sys.executable, *TINY, "--train.steps", "30", "--workdir", str(run)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    return run


@pytest.mark.slow
def test_a_checkpoint_tells_its_seconds_of_training(short_run, tmp_path):
    at = [checkpoints.seconds_at(short_run / "checkpoints", step) for step in (20, 30)]
    assert 0 < at[0] < at[1]
    with pytest.raises(UserError, match="checkpoint .*7 cannot be read: "):
        checkpoints.seconds_at(tmp_path, 7)


def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_say_how_to_go_on(short_run, tmp_path, number, code):
    run = copy(short_run, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *TINY, "--train.steps", "100000", "--workdir", str(run)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    size = (run / "metrics.jsonl").stat().st_size
    wait_until(lambda: (run / "metrics.jsonl").stat().st_size > size, process)
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == code
    assert "run the same command again" in shown and "Traceback" not in shown
    step = checkpoints.newest_good(run / "checkpoints")
    assert f"stopped at step {step} of" in shown and step > 30
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] <= step < last["step"] + 3


def test_a_second_process_on_the_same_run_is_refused(short_run, python):
    from jgen.train.run_directory import RunDirectory

    held = RunDirectory(short_run)
    try:
        done = python(*TINY, "--train.steps", "40", "--workdir", short_run, check=False)
    finally:
        held.close()
    assert_user_mistake(done, "another process", str(short_run))


def test_a_changed_configuration_is_refused_field_by_field(short_run, tmp_path):
    run = copy(short_run, tmp_path)
    before = (run / "config.json").read_bytes()
    changed = ["--model.beta", "0.5", "--seed", "3", "--train.steps", "40"]
    with pytest.raises(UserError) as caught:
        train.command([*TINY[1:], *changed, "--workdir", str(run)])
    assert "model.beta was 1.0, is 0.5" in str(caught.value) and "seed was 0, is 3" in str(caught.value)
    assert "train.steps was" not in str(caught.value)
    with pytest.raises(UserError, match="train.steps is 20: .* is trained to step 30"):
        train.command([*TINY[1:], "--train.steps", "20", "--workdir", str(run)])
    assert (run / "config.json").read_bytes() == before
    # What says only how to sample may change; what a checkpoint was trained with stands in it.
    options = ["--train.steps", "40", "--model.sampling.temperature", "0.7"]
    assert train.command([*TINY[1:], *options, "--workdir", str(run)]) == 0
    assert checkpoints.newest_good(run / "checkpoints") == 40
    for step, document in ((30, before), (40, (run / "config.json").read_bytes())):
        meta = json.loads((run / "checkpoints" / str(step) / "meta" / "metadata").read_text())
        assert meta["config"] == json.loads(document)


def test_a_signal_while_the_last_checkpoint_is_written_loses_nothing(short_run, tmp_path, monkeypatch):
    run = copy(short_run, tmp_path)
    experiment, _ = runs.load_experiment(run)
    close = checkpoints.Writer.close

    def interrupted(writer):
        signal.raise_signal(signal.SIGTERM)
        close(writer)

    monkeypatch.setattr(checkpoints.Writer, "close", interrupted)
    assert api.fit(replace(experiment, train=replace(experiment.train, steps=32)), run) == "trained"
    assert checkpoints.newest_good(run / "checkpoints") == 32


def test_a_slow_save_holds_the_metrics_of_its_own_step(short_run, tmp_path, monkeypatch):
    """Steps that are trained while a checkpoint is written do not get into its window of metrics."""
    import orbax.checkpoint as ocp

    run = copy(short_run, tmp_path)
    experiment, _ = runs.load_experiment(run)
    save = ocp.CheckpointManager.save

    def slow(manager, step, **kwargs):
        before = (run / "metrics.jsonl").stat().st_size
        wait_until(lambda: step != 40 or (run / "metrics.jsonl").stat().st_size > before)
        return save(manager, step, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", slow)
    longer = replace(experiment.train, steps=60, checkpoint_every=40)
    assert api.fit(replace(experiment, train=longer), run) == "trained"
    meta = json.loads((run / "checkpoints" / "40" / "meta" / "metadata").read_text())
    assert meta["window"]["counts"]["loss"] == 1  # of step 40, after the line of step 39


def test_the_grid_is_a_row_a_class_of_the_averages_samples(short_run):
    from PIL import Image

    from jgen.data.grids import make_grid
    from jgen.data.pictures import to_display

    gen, label = api.load(short_run), np.repeat(np.arange(10), 10)
    images = gen.sample(jax.random.key(gen.config.seed), 100, label=label, batch_size=100)
    grid = np.asarray(Image.open(short_run / "samples" / "step_00000030.png"))
    np.testing.assert_array_equal(grid, make_grid(to_display(images, gen.model.images.levels), 10).squeeze())


def test_a_grid_that_is_missing_at_the_end_is_drawn_again(short_run, tmp_path):
    """As after a kill between the last checkpoint and the grid."""
    run = copy(short_run, tmp_path)
    grid = run / "samples" / "step_00000030.png"
    before = grid.read_bytes()
    grid.unlink()
    experiment, _ = runs.load_experiment(run)
    assert api.fit(experiment, run) == "finished" and grid.read_bytes() == before


@pytest.mark.slow
def test_a_grid_that_a_kill_has_left_out_is_drawn_on_resuming(short_run, tmp_path):
    """As after a kill between a checkpoint in the middle and its grid: the same picture as of an unbroken run."""
    run = copy(short_run, tmp_path)
    experiment, _ = runs.load_experiment(run)
    longer = replace(experiment, train=replace(experiment.train, steps=31, sample_every=10))
    grid = run / "samples" / "step_00000030.png"
    before = grid.read_bytes()
    grid.unlink()
    api.fit(longer, run)
    assert grid.read_bytes() == before


@pytest.mark.parametrize("wrong", [OSError(5, "Input/output error"), "no object"])
def test_a_checkpoint_that_cannot_be_read_is_passed_over(short_run, tmp_path, monkeypatch, capsys, wrong):
    folder = copy(short_run, tmp_path) / "checkpoints"
    if wrong == "no object":
        checkpoints.manifest_path(folder, 30).write_text('["a list"]')
    else:
        real = checkpoints.hash_tree

        def hash_tree(path):
            if path.name == "30":
                raise wrong
            return real(path)

        monkeypatch.setattr(checkpoints, "hash_tree", hash_tree)
    assert checkpoints.newest_good(folder) == 20
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and ("Input/output error" in warning or "damaged list of hashes" in warning)


def test_of_many_classes_the_grid_shows_some(short_run, tmp_path, monkeypatch):
    from PIL import Image

    from jgen.data.grids import make_grid
    from jgen.data.pictures import to_display

    run = copy(short_run, tmp_path)
    (run / "samples" / "step_00000030.png").unlink()
    monkeypatch.setattr(loop, "MOST_ROWS", 4)
    api.fit(runs.load_experiment(run)[0], run)
    gen, label = api.load(run), np.repeat([0, 3, 6, 9], 10)
    images = gen.sample(jax.random.key(gen.config.seed), 40, label=label, batch_size=40)
    grid = np.asarray(Image.open(run / "samples" / "step_00000030.png"))
    np.testing.assert_array_equal(grid, make_grid(to_display(images, gen.model.images.levels), 10).squeeze())


def test_a_training_runs_in_a_thread_of_the_users_program(short_run, tmp_path):
    run, outcomes = copy(short_run, tmp_path), []
    experiment, _ = runs.load_experiment(run)
    longer = replace(experiment, train=replace(experiment.train, steps=31))
    thread = threading.Thread(target=lambda: outcomes.append(api.fit(longer, run)))
    thread.start()
    thread.join()
    assert outcomes == ["trained"] and checkpoints.newest_good(run / "checkpoints") == 31


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, capsys):
    def without(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    run_directory.RunDirectory(tmp_path).close()
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err


def test_a_schedule_of_a_new_length_is_said(short_run, tmp_path, capsys):
    run = copy(short_run, tmp_path)
    experiment, _ = runs.load_experiment(run)
    api.fit(replace(experiment, train=replace(experiment.train, steps=31)), run)
    assert "train.steps was 30, is 31: the learning rate follows the cosine schedule" in capsys.readouterr().err


def test_the_only_checkpoint_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    state = TrainState(np.int32(1), jax.random.key(0), {"a": {"w": np.ones(3)}}, {}, {}, {}, np.zeros(2, np.int32))
    writer = checkpoints.Writer(tmp_path, 1, 0)
    writer.save(state, {})
    writer.wait()
    with monkeypatch.context() as killed:  # before its hashes are written
        killed.setattr(checkpoints, "hash_tree", lambda folder: (_ for _ in ()).throw(OSError("killed")))
        writer.save(state._replace(step=np.int32(2)), {})
        with pytest.raises(UserError, match="killed"):
            writer.wait()
    assert checkpoints.steps_in(tmp_path) == [2, 1] and checkpoints.newest_good(tmp_path) == 1
    writer.save(state._replace(step=np.int32(3)), {})
    writer.close()
    assert checkpoints.steps_in(tmp_path) == [3]


def files_of(run, step):
    folder = run / "checkpoints" / str(step)
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over(short_run, tmp_path, capsys, how):
    names = files_of(short_run, 30)
    assert len(names) > 5
    good = final_arrays(short_run)[0]
    for i, name in enumerate([*names, "../30.sha256.json"]):
        run = copy(short_run, tmp_path / str(i))
        victim = run / "checkpoints" / "30" / name
        if how == "truncate":
            victim.write_bytes(victim.read_bytes()[:-1] if victim.stat().st_size else b"x")
        else:
            victim.unlink()
        gen = api.load(run)
        assert gen.step == 20, name
        assert "warning: checkpoint" in capsys.readouterr().err
    # Training goes on from the one before, keeps the damaged one aside, and ends in the same bits.
    experiment, _ = runs.load_experiment(run)
    assert api.fit(experiment, run) == "trained"
    again = final_arrays(run)[0]
    for name, array in good.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    assert (run / "checkpoints" / "damaged-30").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(short_run, tmp_path):
    run = copy(short_run, tmp_path)
    for step in checkpoints.steps_in(run / "checkpoints"):
        (run / "checkpoints" / str(step) / "meta" / "metadata").write_text("x")

    def content():
        return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}

    before = content()
    experiment, _ = runs.load_experiment(run)
    message = r"^no checkpoint in .* is whole any more: that of step 30 is damaged in meta/metadata; restore"
    for call in (lambda: api.fit(experiment, run), lambda: api.load(run)):
        with pytest.raises(UserError, match=message):
            call()
    assert content() == before


def test_checkpoints_are_kept_as_asked(cache, tmp_path):
    run = tmp_path / "run"
    options = ["--train.steps", "60", "--train.keep", "2", "--train.keep-every", "20"]
    assert train.command([*TINY[1:], *options, "--workdir", str(run)]) == 0
    assert checkpoints.steps_in(run / "checkpoints") == [60, 50, 40, 20]
    assert api.load(run, step=20).step == 20


def test_twenty_bad_steps_in_a_row_stop_the_run(short_run, tmp_path, monkeypatch):
    run, model_of = copy(short_run, tmp_path), runs.model_of

    def poisoned(*args):
        model = model_of(*args)
        phase = model.phases[0]

        def loss(params, ctx, keys, batch):
            value, rest = phase.loss(params, ctx, keys, batch)
            return jnp.where(ctx.step >= 35, jnp.nan, value), rest

        return model._replace(phases=(phase._replace(loss=loss),))

    monkeypatch.setattr(runs, "model_of", poisoned)
    with pytest.raises(UserError, match="20 steps up to step 55.*last good checkpoint is step"):
        train.command([*TINY[1:], "--train.steps", "100", "--workdir", str(run)])
    state, _ = final_arrays(run)
    assert all(np.all(np.isfinite(a)) for a in state.values() if a.dtype.kind == "f")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="file systems of a test's own are Linux's")
def test_a_full_disk_leaves_the_last_checkpoint(short_run, tmp_path):
    """On a file system of its own, filled up to less than a checkpoint."""
    script = f"""
mount -t tmpfs -o size=4m tmpfs {tmp_path} || exit 77
echo mounted
cp -r {short_run} {tmp_path}/run && cd {ROOT} || exit 78
{sys.executable} -c "
import os
free = os.statvfs('{tmp_path}')
with open('{tmp_path}/filler', 'wb') as file:
    file.write(bytes(free.f_bavail * free.f_frsize - 60_000))
"
{sys.executable} {" ".join(TINY)} --train.steps 50 --workdir {tmp_path}/run
code=$?
rm {tmp_path}/filler
{sys.executable} -c "import jgen; print('step', jgen.load('{tmp_path}/run').step)"
exit $code
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, text=True)
    if "mounted" not in done.stdout:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 2, done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: cannot write") and "free on the disk" in error, done.stderr
    assert "Traceback" not in done.stderr
    assert "step 30" in done.stdout, done


def test_too_little_room_on_the_disk_leaves_the_last_checkpoint(short_run, tmp_path, monkeypatch):
    """The same where no file system can be mounted: the disk says how much is free."""
    run = copy(short_run, tmp_path)
    experiment, _ = runs.load_experiment(run)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"cannot write a checkpoint to .* 0\.0 MB are free on the disk"):
        api.fit(replace(experiment, train=replace(experiment.train, steps=50)), run)
    assert api.load(run).step == 30


def test_later_starts_are_noted_by_what_has_changed(tmp_path, monkeypatch):
    where = {"commit": "aaa", "command": ["train.py"], "devices": ["cpu"]}
    monkeypatch.setattr(run_directory, "environment", lambda: dict(where))
    directory = run_directory.RunDirectory(tmp_path)

    def read():
        return json.loads((tmp_path / "environment.json").read_text())

    directory.note_start(0, 3)
    first = {**where, "seed": 3}
    assert read() == first
    directory.note_start(10, 3)  # as before: nothing to say
    assert read() == first
    where["commit"] = "bbb"
    directory.note_start(20, 3)
    directory.note_start(30, 3)
    where["command"] = ["train.py", "--train.steps", "99"]
    directory.note_start(40, 3)
    resumed = [{"step": 20, "commit": "bbb"}, {"step": 40, "command": where["command"]}]
    assert read() == {**first, "resumed": resumed}
    (tmp_path / "environment.json").write_text("{dam")
    directory.note_start(50, 3)
    assert read() == {**where, "seed": 3}
    directory.close()
