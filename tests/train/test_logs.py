"""Metrics: lines that a resumed run cuts, means without what is not finite, and what TensorBoard receives; commits."""

import io
import json
import math
import struct
import subprocess

import numpy as np
import pytest

from jgen.errors import UserError
from jgen.train import checkpoints, logs, run_directory
from jgen.train.logs import MetricsLog, Window


def test_a_resumed_run_cuts_what_lies_past_its_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, "train", {"loss": 1.0 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')  # killed while it wrote
    again = MetricsLog(tmp_path, 20)
    again.write(30, "train", {"loss": 0.5})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30] and lines[-1]["loss"] == 0.5


def test_a_board_that_cannot_be_written_is_done_without(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    (tmp_path / "tensorboard").write_text("a file where its folder would be")
    log = MetricsLog(tmp_path, 0)
    log.write(10, "train", {"loss": 1.0})
    log.close()
    assert "warning: no TensorBoard logs" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 10, "split": "train", "loss": 1.0}


def test_a_window_leaves_out_what_is_not_finite_and_survives_a_kill():
    window = Window()
    window.add({"loss": 1.0, "skipped": 0, "skipped_in_a_row": 0})
    window.add({"loss": float("nan"), "skipped": 1, "skipped_in_a_row": 1})
    again = Window(json.loads(json.dumps(window.state)))
    again.add({"loss": 2.0, "skipped": 1, "skipped_in_a_row": 0})
    assert again.line() == {"loss": 1.5, "skipped": 1}


def events(folder):
    """(step, tag, value) of every scalar in a folder's event files: records of length, checksum, bytes, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    scalars = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return scalars


def test_tensorboard_receives_every_value_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboardX")
    log = MetricsLog(tmp_path, 0)
    log.write(10, "train", {"loss": 0.5, "grad_norm": 2.0})
    log.write(10, "validation", {"elbo": -3.0})
    log.close()
    wanted = [(10, "train/loss", 0.5), (10, "train/grad_norm", 2.0), (10, "validation/elbo", -3.0)]
    assert events(tmp_path / "tensorboard") == wanted


def test_the_run_goes_on_when_tensorboard_cannot_write(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    log = MetricsLog(tmp_path, 0)

    class Full:
        def add_scalar(self, *args):
            raise OSError(28, "No space left on device")

    log._board.close()
    log._board = Full()
    log.write(10, "train", {"loss": 0.5})
    log.write(20, "train", {"loss": 0.25})
    log.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().err.count("No space left") == 1


def test_closing_the_log_does_not_hide_that_the_disk_is_full(tmp_path):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

        def close(self):  # as a file does, which tries once more
            super().close()
            self.flush()

    log = MetricsLog(tmp_path, 0)
    log._file.close()
    log._file = Full()
    with pytest.raises(UserError, match="^cannot write .*metrics.jsonl: No space left on device$"):
        try:
            log.write(10, "train", {"loss": 0.5})
        finally:
            log.close()
    assert log._file.closed


def test_the_best_step_is_told_by_the_models_score():
    lines = [
        {"step": 1, "elbo": -3.0, "mse": 1.0},
        {"step": 2, "elbo": -2.0, "mse": 2.0},
        {"step": 3, "elbo": math.nan},
        {"step": 4, "elbo": None},  # as a number that is not finite stands in metrics.jsonl
    ]
    assert logs.best_of(lines, ("elbo", "max")) == lines[1]
    assert logs.best_of(lines, ("elbo", "min")) == logs.best_of(lines, ("mse", "min")) == lines[0]
    assert logs.best_of(lines, None) is logs.best_of([], ("elbo", "max")) is logs.best_of(lines, ("fd", "min")) is None


def test_what_is_not_finite_is_null(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(10, "train", {"loss": math.nan, "grad_norm": math.inf})
    log.write(20, "train", {"loss": np.float32(0.5)})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0] == {"step": 10, "split": "train", "loss": None, "grad_norm": None} and lines[1]["loss"] == 0.5


def test_the_best_checkpoint_is_one_that_is_whole_and_was_validated(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30, 40):
        (folder / str(step)).mkdir(parents=True)
        (folder / f"{step}.sha256.json").write_text("{}")
    scores = {10: -4.0, 15: -1.0, 20: -2.0, 30: -3.0}
    lines = [{"step": step, "split": "validation", "elbo": elbo} for step, elbo in scores.items()]
    lines.append({"step": 40, "split": "train", "elbo": 0.0})
    best = ("elbo", "max")

    def write(lines):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(lines)
    assert checkpoints.best_good(folder, best) == 20 and checkpoints.best_good(folder, ("elbo", "min")) == 10
    (folder / "20.sha256.json").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "spl')  # as a run that is being trained, or was killed
    assert checkpoints.best_good(folder, best) == 30
    assert capsys.readouterr().err == f"warning: checkpoint {folder / '20'} was not finished: using the next best\n"
    write(lines[1:2])
    with pytest.raises(UserError, match="not say which checkpoint is best: no kept and whole checkpoint has a score"):
        checkpoints.best_good(folder, best)
    write([{"step": 10, "split": "validation", "accuracy_real": 0.5, "accuracy_fake": 0.5}])
    for nothing in (None, best):
        with pytest.raises(UserError, match="its validation has accuracy_real, accuracy_fake; give a step"):
            checkpoints.best_good(folder, nothing)
    write([])
    with pytest.raises(UserError, match="its validation has no scores; give a step"):
        checkpoints.best_good(folder, best)


def test_a_commit_tells_of_changes_to_the_program_and_not_to_its_records(tmp_path, monkeypatch):

    def git(*args):
        return subprocess.check_output(["git", "-C", tmp_path, *args], stderr=subprocess.DEVNULL, text=True)

    module = tmp_path / "jgen" / "train" / "run_directory.py"
    module.parent.mkdir(parents=True)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(run_directory, "__file__", str(module))
    assert run_directory.commit() is None  # no source tree
    module.write_text("")
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "x")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "results" / "speed.json").write_text("{}")
    assert run_directory.commit() == head
    module.write_text("x = 1")
    assert run_directory.commit() == f"{head}+"
