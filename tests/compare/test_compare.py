"""`python -m jgen.compare`: what is compared, the budget, how it goes on, and what is refused."""

import json

import pytest
from pretended import ALONE, ARGUMENTS, COST, DISTANCES, GENERATORS, NO_BEST, STAGED, pretend

from jgen.compare import __main__ as compare
from jgen.compare import config, processes, rows, stages, tables
from jgen.compare.systems import load_training
from jgen.errors import UserError
from jgen.metrics import quality

FIRST, SECOND, THIRD = ALONE.name, NO_BEST.name, STAGED.name
ONE = ["--seeds", "1", "--systems", FIRST, "--sizes", "8"]
WARMED_UP = next(s.training for s in GENERATORS if s.training.experiment.train.optimiser.warmup_steps > 0)


def commands(folder, system, seed):
    return json.loads((folder / system / f"seed{seed}.commands.json").read_text())


def rows_by_name(folder):
    return {row["system"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}


@pytest.mark.slow
def test_the_seed_that_is_shown_is_one_that_was_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({FIRST: ["the disk is full", 5.0]}))
    args = ["--seeds", "2", "--systems", FIRST, "--sizes", "8", "--workdir", str(tmp_path)]
    assert compare.command(args) == 0
    for name in ("comparison.md", "comparison.html"):
        text = (tmp_path / name).read_text()
        assert f"{FIRST}/seed1 --" in text and f"{FIRST}/seed0" not in text and "gave FD 5.00" in text


def test_images_that_there_are_not_are_reported_before_training(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({FIRST: [4.0]}))
    args = [*ONE, "--workdir", str(tmp_path / "x")]
    with pytest.raises(UserError, match="--num is 298: test of digits has 297 images"):
        compare.command([*args, "--num", "298"])
    assert not (tmp_path / "x").exists()
    assert compare.command([*args, "--likelihood-images", "500"]) == 0  # at the most
    assert "--likelihood-images 297" in commands(tmp_path / "x", FIRST, 0)[-1]


@pytest.mark.slow
def test_stages_that_were_done_before_tell_nothing_about_the_time_left(outcome, monkeypatch, capsys):
    folder, _ = outcome
    (folder / THIRD / "seed1.evaluation.json").unlink()
    monkeypatch.setattr(processes, "run", pretend(DISTANCES | {SECOND: [1.0, 2.0]}))
    assert compare.command([*ARGUMENTS, "--workdir", str(folder)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.endswith(f"{FIRST} seed 0: train")]
    assert lines == [f"[4 of 9, about 5 min left] {FIRST} seed 0: train"]  # of two trainings, as long as the budget


def test_the_time_left_is_that_of_the_stages_ahead_as_the_last_ones_took(tmp_path, monkeypatch, capsys):
    clock, pretended = [0.0], pretend({FIRST: [4.0, 5.0]})

    def run(words, log):
        clock[0] += 300.0 if words[0].endswith("train.py") else 0.0
        pretended(words, log)

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock[0])
    args = ["--teraflops", "0.01", "--seeds", "2", "--systems", FIRST, "--sizes", "8", "--workdir", str(tmp_path)]
    assert compare.command(args) == 0
    times = [line.partition("]")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    # 500 steps of half a second, and half a minute: 280 s each, which took 300.
    assert times == ["[1 of 3, about 2 min left", "[2 of 3, about 9 min left", "[3 of 3, about 5 min left"]


def test_the_budget_is_divided_evenly_between_the_trainings_of_a_system(outcome):
    folder, _ = outcome
    assert "--train.steps 240" in commands(folder, FIRST, 1)[0]  # two minutes of half a second each
    assert "--seed 1" in commands(folder, FIRST, 1)[0]
    *trainings, _ = commands(folder, THIRD, 0)
    chain = STAGED.training.in_order()
    assert len(trainings) == len(chain) > 1
    for words, training in zip(trainings, chain):
        assert f"--train.steps {240 // len(chain)}" in words and f" {training.config} " in words
    for role, inner in STAGED.training.frozen.items():
        assert f"--frozen.{role} {folder.parent}" not in trainings[0]
        assert f"--frozen.{role} " in trainings[-1] and f"seed0-{inner.name}" in trainings[-1]


def test_the_best_checkpoint_is_scored_and_shown_where_a_score_tells_it(outcome):
    folder, _ = outcome
    for system, best in ((FIRST, True), (SECOND, False)):
        trained, scored = commands(folder, system, 0)
        assert "--train.validate-every 30 --train.checkpoint-every 30 --train.keep-every 30" in trained
        assert ("--step best" in scored) == best and f"/{system}/seed0.png --out" in scored
    for steps, part in ((247, "31"), (9, "2"), (1, "1")):  # at most eight, the last with them
        words = stages.train_words(ALONE.training, folder, steps, 0, {})
        assert words[words.index("--train.keep-every") + 1] == part and -(-steps // int(part)) <= 8
    row = rows_by_name(folder)[FIRST]
    assert row["grid"] == f"grids/{FIRST}.png" and row["scores"]["steps"]["mean"] == 240
    head, *cells = tables.cost_table([row], [])
    assert [dict(zip(head, cells[0]))[name] for name in ("steps", "best step")] == ["240", "180"]


def test_the_learning_rate_rises_for_a_tenth_of_the_steps_at_most(tmp_path):
    def words(steps):
        return stages.train_words(WARMED_UP, tmp_path, steps, 0, {})

    warmup = WARMED_UP.experiment.train.optimiser.warmup_steps
    assert words(5 * warmup)[-2:] == ["--train.optimiser.warmup-steps", str(warmup // 2)]
    assert "--train.optimiser.warmup-steps" not in words(10 * warmup)  # the configuration's own


def test_a_run_goes_on_with_its_steps_in_a_moved_folder_and_at_another_speed(outcome, ran):
    folder, _ = outcome
    moved = folder.rename(folder.with_name("moved"))
    measured = json.loads((moved / SECOND / "measure.json").read_text())
    measured["own"]["step_seconds"] = 5.0
    (moved / SECOND / "measure.json").write_text(json.dumps(measured))
    words = ran({SECOND: [1.0, 2.0]})
    assert compare.command([*ARGUMENTS, "--workdir", str(moved)]) == 0
    assert words[0][words[0].index("--workdir") + 1] == str(moved / SECOND / "seed1") and "240" in words[0]


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped_and_tries_again_what_failed(outcome, ran):
    folder, _ = outcome
    words_of_all = ran({SECOND: [1.0, 2.0]})
    assert compare.command([*ARGUMENTS, "--workdir", str(folder)]) == 0
    joined = [" ".join(words) for words in words_of_all]
    assert len(joined) == 2 and all("seed1" in words and SECOND in words for words in joined)
    row = rows_by_name(folder)[SECOND]
    assert row["errors"] == {} and len(row["seeds"]) == 2
    with pytest.raises(UserError, match="--minutes was 2.0, is 3.0"):
        compare.command([*ARGUMENTS, "--minutes", "3", "--workdir", str(folder)])
    begun = json.loads((folder / "arguments.json").read_text())
    name = next(key for key in begun if key.startswith("model.") and key.endswith(ALONE.training.config))
    (folder / "arguments.json").write_text(json.dumps(begun | {name: "other"}))
    with pytest.raises(UserError, match=f"begun otherwise: {name} was other, is {begun[name]} "):
        compare.command([*ARGUMENTS, "--workdir", str(folder)])


@pytest.mark.slow
def test_distances_are_called_fid_in_the_features_of_the_published_network_only(outcome, monkeypatch, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"weights")
    words_of_all, pretended = [], pretend({FIRST: [4.0]})

    def run(words, log):
        words_of_all.append(words)
        pretended(words, log)
        for path in (tmp_path / "o").glob("*/*.evaluation.json"):
            document = json.loads(path.read_text())
            document["quality"]["network"] = "FID"
            path.write_text(json.dumps(document))

    args = [*ONE, "--inception", str(tmp_path / "x.pth")]
    with pytest.raises(UserError, match="^--inception: [^\n]*x.pth[^\n]*$"):  # known before anything is trained
        compare.command([*args, "--workdir", str(tmp_path / "o")])
    monkeypatch.setattr(compare, "check_inception", lambda path: None)
    monkeypatch.setattr(processes, "run", run)
    assert compare.command([*args, "--workdir", str(tmp_path / "o")]) == 0
    assert words_of_all[-1][words_of_all[-1].index("--inception") + 1] == str(tmp_path / "x.pth")
    text = (tmp_path / "o" / "comparison.md").read_text()
    assert "| FID | KID |" in text and "gave FID 4.00 (" in text and "KID 0.40000" in text and "not FID" not in text
    text = (outcome[0] / "comparison.md").read_text()
    assert "| FD | kernel distance |" in text and "FID" not in text.partition("not FID")[0]
    assert rows.columns("FD-inception-01234567")[1] == ("kernel_distance", "kernel distance", 5)
    with pytest.raises(UserError, match=r"begun otherwise: --inception was .*x.pth, is  \(use another --workdir\)"):
        compare.command([*args[:-2], "--workdir", str(tmp_path / "o")])


def test_sizes_that_are_missing_are_measured_and_nothing_else(outcome, ran):
    folder, _ = outcome
    words_of_all = ran({SECOND: [1.0, 2.0]})
    assert compare.command([*ARGUMENTS[:-2], "16", "32", "--seeds", "1", "--workdir", str(folder)]) == 0
    assert [words[1] for words in words_of_all] == ["jgen.compare.measure"] * 3
    assert all("--add" in words for words in words_of_all)
    text = (folder / "comparison.md").read_text()
    assert "20 / 50" in text and "at 32x32" in text


def test_fewer_seeds_average_those_that_are_asked_for(outcome):
    folder, _ = outcome
    assert compare.command([*ARGUMENTS, "--seeds", "1", "--workdir", str(folder)]) == 0
    by_name = rows_by_name(folder)
    assert by_name[FIRST]["scores"]["distance"] == {"mean": 4.0, "spread": None} and len(by_name[FIRST]["seeds"]) == 1
    assert by_name[SECOND]["errors"] == {} and list(by_name[SECOND]["commands"]) == ["seed0"]


def test_what_scoring_needs_is_asked_for_before_training():
    assert config.FEWEST == quality.FEWEST


def test_operations_as_the_budget():
    arguments = config.Arguments(teraflops=0.1)
    assert stages.steps_for(COST, arguments, 1.0) == 5000  # 20 million a step
    assert stages.steps_for(COST, arguments, 1 / 4) == 1250
    with pytest.raises(
        processes.Failed, match="1e-06 trillion operations is too short for one step, which takes 2e-05 trillion"
    ):
        stages.steps_for(COST, config.Arguments(teraflops=1e-6), 1.0)


def test_every_training_is_given_the_steps_of_the_same_operations(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({FIRST: [4.0], THIRD: [9.0]}))
    args = ["--teraflops", "0.1", "--seeds", "1", "--systems", f"{FIRST},{THIRD}", "--sizes", "8"]
    assert compare.command([*args, "--workdir", str(tmp_path)]) == 0
    number = len(STAGED.training.in_order())
    assert [stages.steps_of(line) for line in commands(tmp_path, FIRST, 0)[:-1]] == [5000]
    assert [stages.steps_of(line) for line in commands(tmp_path, THIRD, 0)[:-1]] == [5000 // number] * number
    table = (tmp_path / "comparison.md").read_text()
    assert "as many steps as its operations put into 0.1 trillion operations" in table


PART = next(iter(STAGED.training.frozen.values())).name.removesuffix("-digits")


@pytest.mark.parametrize(
    "args,words",
    [
        (["--systems", f"{FIRST},nothing"], ["'nothing'", FIRST, SECOND]),
        (["--systems", PART], [PART, "generates no images by itself", THIRD]),
        (["--data", "nowhere"], ["nowhere", "digits", "mnist"]),
        (["--minutes", "0"], ["--minutes is 0"]),
        (["--minutes", "inf"], ["--minutes is inf", "finite"]),
        (["--teraflops", "inf"], ["--teraflops is inf"]),
        (["--teraflops", "1", "--minutes", "2"], ["--minutes is 2", "one or the other"]),
        (["--seeds", "0"], ["--seeds is 0"]),
        (["--teraflops", "-1"], ["--teraflops is -1"]),
        (["--sizes", "0"], ["--sizes"]),
        (["--samples", "49"], ["--samples is 49", "at least 50"]),
        (["--num", "20"], ["--num is 20", "at least 50"]),
        (["--num", "-1"], ["--num is -1"]),
        (["--nothing"], ["--nothing"]),
        (["--into", "nowhere"], ["--into is nowhere", "no comparison.json"]),
    ],
)
def test_mistakes_are_one_line(cache, args, words, tmp_path):
    with pytest.raises(UserError) as caught:
        compare.command([*args, "--workdir", str(tmp_path / "x")])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not (tmp_path / "x").exists()


def test_a_budget_too_short_for_one_step_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({FIRST: [1.0]}))
    with pytest.raises(UserError, match="0.001 minutes is too short for one step, which takes 0.5 s"):
        compare.command(["--minutes", "0.001", *ONE, "--workdir", str(tmp_path)])


@pytest.mark.slow
def test_two_systems_end_to_end(python, tmp_path):
    args = ["-m", "jgen.compare", "--data", "tiny", "--minutes", "0.02", "--seeds", "1"]
    args += ["--systems", f"{FIRST},{THIRD}", "--sizes", "8", "--samples", "100", "--num", "100"]
    done = python(*args, "--workdir", tmp_path / "x")
    by_name = rows_by_name(tmp_path / "x")
    assert all(row["scores"]["distance"]["mean"] > 0 and not row["errors"] for row in by_name.values())
    assert THIRD in done.stdout and (tmp_path / "x" / "comparison.html").stat().st_size > 10_000
    tiny = load_training(THIRD_TINY)
    assert by_name[THIRD]["trainings"] == [training.config for training in tiny.in_order()]


THIRD_TINY = STAGED.training.config.replace(":digits", ":tiny")
