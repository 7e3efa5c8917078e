"""`python -m jgen.compare`: what goes wrong in one system, or in its folder, leaves the others."""

import json

import pytest
from pretended import ALONE, ARGUMENTS, NO_BEST, STAGED, pretend

from jgen.compare import __main__ as compare
from jgen.compare import processes, rows
from jgen.core.files import lock
from jgen.errors import UserError

FIRST, SECOND = ALONE.name, NO_BEST.name


@pytest.mark.slow
def test_a_score_that_is_no_number_is_an_error_of_its_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({FIRST: [4.0, float("nan")], SECOND: [1.0, 2.0]}))
    args = ["--seeds", "2", "--systems", f"{FIRST},{SECOND}", "--sizes", "8", "--workdir", str(tmp_path)]
    assert compare.command(args) == 0
    by_name = {row["system"]: row for row in json.loads((tmp_path / "comparison.json").read_text())["rows"]}
    assert by_name[FIRST]["errors"] == {"seed 1": "distance is nan, kernel_distance is nan"}
    assert by_name[FIRST]["scores"]["distance"] == {"mean": 4.0, "spread": None}
    assert len(by_name[SECOND]["seeds"]) == 2


def test_a_system_that_was_measured_at_its_own_size_alone_is_trained(tmp_path, monkeypatch):
    def run(words, log):
        pretend({FIRST: [4.0]})(words, log)
        if "jgen.compare.measure" in words:
            raise processes.Failed("killed by signal 9")

    monkeypatch.setattr(processes, "run", run)
    args = ["--seeds", "1", "--systems", FIRST, "--sizes", "8", "32", "--workdir", str(tmp_path)]
    assert compare.command(args) == 0
    row = json.loads((tmp_path / "comparison.json").read_text())["rows"][0]
    assert row["errors"] == {"measure": "killed by signal 9"} and row["scores"]["distance"]["mean"] == 4.0


@pytest.mark.parametrize("name", ["comparison.md", "comparison.csv", "comparison.html", "grids.png", "figures.png"])
def test_an_outcome_that_cannot_be_written_is_one_line(outcome, name):
    folder, _ = outcome
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(UserError, match=f"^cannot write .*{name}: Is a directory$"):
        compare.command([*ARGUMENTS, "--seeds", "1", "--workdir", str(folder)])


def test_scores_that_were_measured_otherwise_do_not_stand_beside_others(outcome):
    folder, _ = outcome
    path = folder / FIRST / "seed1.evaluation.json"
    plain = json.loads(path.read_text())
    for change, message in (
        ({"data_fingerprint": "0000000000000000"}, "data 000000000000; others with FD-digits-0"),
        (
            {"quality": {**plain["quality"], "network": "FD-digits-1"}},
            "scored with FD-digits-1, 100 samples to 90 test",
        ),
    ):
        path.write_text(json.dumps({**plain, **change}))
        by_name = {row["system"]: row for row in rows.all_rows(folder, [NO_BEST, ALONE], 2)}
        assert list(by_name[FIRST]["seeds"]) == ["seed0"] and message in by_name[FIRST]["errors"]["seed 1"]
        # Of another system they are all others.
        (folder / FIRST / "seed0.evaluation.json").write_text(path.read_text())
        by_name = {row["system"]: row for row in rows.all_rows(folder, [NO_BEST, ALONE], 2)}
        assert not by_name[FIRST]["seeds"] and len(by_name[FIRST]["errors"]) == 2 and by_name[SECOND]["seeds"]
        (folder / FIRST / "seed0.evaluation.json").write_text(json.dumps(plain))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["measure.json", "seed0.evaluation.json", "seed0.commands.json", "errors.json"])
@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_a_damaged_file_of_one_system_leaves_the_others(outcome, monkeypatch, name, content):
    folder, _ = outcome
    (folder / FIRST / name).write_text(content)
    if name == "seed0.commands.json":  # which is read to go on with a training
        (folder / FIRST / "seed0.evaluation.json").unlink()
    monkeypatch.setattr(processes, "run", pretend({SECOND: [1.0, 2.0], FIRST: [4.0, 6.0]}))
    assert compare.command([*ARGUMENTS, "--workdir", str(folder)]) == 0
    by_name = {row["system"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}
    assert len(by_name[SECOND]["seeds"]) == 2 and not by_name[SECOND]["errors"]
    messages = " ".join(by_name[FIRST]["errors"].values())
    assert "\n" not in messages
    if name == "errors.json":  # it is written anew
        assert not by_name[FIRST]["errors"] and json.loads((folder / FIRST / name).read_text()) == {}
    elif content == "{}" and name != "seed0.evaluation.json":  # nothing is in it: all of it is made anew
        assert not by_name[FIRST]["errors"] and len(by_name[FIRST]["seeds"]) == 2
    else:
        assert name in messages and "remove it to have it made anew" in messages


def test_trouble_of_any_kind_in_one_system_leaves_the_others(tmp_path, monkeypatch):
    pretended = pretend({FIRST: [4.0], SECOND: [1.0]})

    def run(words, log):
        if f"/{SECOND}/" in " ".join(words):
            raise OSError(28, "No space left on device")
        pretended(words, log)

    monkeypatch.setattr(processes, "run", run)
    args = ["--seeds", "1", "--systems", f"{SECOND},{FIRST}", "--sizes", "8", "--workdir", str(tmp_path)]
    assert compare.command(args) == 0
    by_name = {row["system"]: row for row in json.loads((tmp_path / "comparison.json").read_text())["rows"]}
    assert by_name[FIRST]["seeds"] and by_name[SECOND]["errors"] == {
        "measure": "OSError: [Errno 28] No space left on device"
    }


def test_a_grid_that_cannot_be_shown_is_left_out(outcome):
    folder, _ = outcome
    (folder / FIRST / "seed0.png").write_bytes(b"damaged")
    (folder / FIRST / "seed1.png").unlink()
    assert compare.command([*ARGUMENTS, "--seeds", "1", "--workdir", str(folder)]) == 0
    assert (folder / "comparison.html").read_text().count("<img") == 2


def test_one_comparison_works_in_a_folder(outcome):
    folder, _ = outcome
    with lock(folder, "", ""), pytest.raises(UserError, match=f"another process is comparing in {folder}: wait"):
        compare.command([*ARGUMENTS, "--workdir", str(folder)])


def test_runs_that_no_comparison_made_are_left_alone(outcome):
    """As after one row was repeated by its commands."""
    folder, _ = outcome
    (folder / "arguments.json").unlink()
    with pytest.raises(UserError, match=f"no comparison made, of {FIRST}, {SECOND}, {STAGED.name}: use another"):
        compare.command([*ARGUMENTS, "--workdir", str(folder)])


def test_what_an_evaluation_could_not_compute_is_an_error_beside_its_scores(outcome):
    folder, _ = outcome
    path = folder / FIRST / "seed0.evaluation.json"
    document = json.loads(path.read_text()) | {"likelihood": None, "errors": {"likelihood": "1 of 20 is not finite"}}
    path.write_text(json.dumps(document))
    row = rows.system_row(ALONE, folder / FIRST, 1)
    assert row["errors"] == {"seed 0": "1 of 20 is not finite"} and row["scores"]["distance"]["mean"] == 4.0


@pytest.mark.parametrize("missing", ["memorisation", "recall", "spatial_frechet_distance", "reference", "density"])
def test_scores_that_an_evaluation_left_out_are_dashes(outcome, missing):
    """As of `jgen.evaluate --no-memorisation`."""
    folder, _ = outcome
    for path in folder.glob("*/*.evaluation.json"):
        document = json.loads(path.read_text())
        del document["quality"][missing]
        path.write_text(json.dumps(document))
    assert compare.command([*ARGUMENTS, "--seeds", "1", "--workdir", str(folder)]) == 0
    for row in json.loads((folder / "comparison.json").read_text())["rows"]:
        assert row["seeds"] and not row["errors"] and row["scores"]["distance"]
    assert (folder / "figures.png").is_file()


def test_other_data_is_refused(outcome):
    folder, _ = outcome
    begun = json.loads((folder / "arguments.json").read_text())
    (folder / "arguments.json").write_text(json.dumps(begun | {"hash of the data": "0"}))
    with pytest.raises(UserError, match="begun otherwise: hash of the data was 0, is "):
        compare.command([*ARGUMENTS, "--workdir", str(folder)])


def test_a_size_that_failed_is_measured_again_and_one_that_does_not_fit_is_not(outcome, ran):
    folder, _ = outcome
    path = folder / FIRST / "measure.json"
    document = json.loads(path.read_text())
    document["sizes"]["8"] = {"error": "out of memory"}
    path.write_text(json.dumps(document))
    words_of_all = ran({SECOND: [1.0, 2.0]})
    assert compare.command([*ARGUMENTS, "--seeds", "1", "--workdir", str(folder)]) == 0
    assert [words[2] for words in words_of_all] == [ALONE.training.config]
