"""`python -m jgen.compare`: what is compared, the budget, the table and the page, and what goes wrong."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from pretended import ARGUMENTS, COST, PROTOCOL, pretend

from jgen.compare import __main__ as compare
from jgen.compare import config, page, processes, report, rows, stages
from jgen.compare.published import LEGEND, PUBLISHED
from jgen.data.pictures import write_png
from jgen.errors import UserError
from jgen.metrics import quality

BOUND = "bound (16 levels, 200 test images, uniform dequantisation, K = 5)"


def test_the_table_has_every_system_best_first_with_spread_and_errors(outcome):
    folder, said = outcome
    document = json.loads((folder / "comparison.json").read_text())
    by_name = {row["system"]: row for row in document["rows"]}
    assert [row["system"] for row in document["rows"]] == ["dcgan", "vae", "vq_prior"]
    assert by_name["vae"]["scores"]["distance"] == {"mean": 5.0, "spread": pytest.approx(2**0.5)}
    assert by_name["dcgan"]["errors"] == {"seed 1": "the disk is full"}
    text = (folder / "comparison.md").read_text()
    for what in ("5.00 ± 1.41", BOUND, "fedcba987654", "failed: seed 1: the disk is full", "does not fit"):
        assert what in text
    assert "50 steps of ddim, guidance scale 2" in text and "Of vq_prior, which has a first stage" in text
    assert "puts into 2 minutes, on 2 x CPU; seeds 0 to 1" in text and "took 1.0 to 1.0 minutes" in text
    assert "jax 0.12, 0.11, Python 3.12, L, commit 0123456789ab+." in text
    gave = "FD 4.00 (3.50 to 4.50), kernel distance 0.4 ± 0.2 over images"
    gave += ", precision 0.500 (0.400 to 0.600), recall 0.250"
    gave += ", memorisation, % 60.0, class accuracy, % 90.0 (85.0 to 95.0)"
    gave += ", bits/dim 2.000 ± 0.010 over images; in brackets, 95 % by bootstrap of the images"
    real = "100 real images of the train split, in place of samples, have FD 0.25, recall 0.900."
    assert real in text and real in (folder / "comparison.html").read_text()
    assert f"```\n\ngave {gave}." in text and f"# gave {gave}" in (folder / "comparison.html").read_text()
    assert "5.00 ± 1.41" in said
    with (folder / "comparison.csv").open() as file:
        lines = {line["system"]: line for line in csv.DictReader(file)}
    assert by_name["vae"]["protocol"] == PROTOCOL and lines["vae"]["likelihood_num"] == "200"
    assert BOUND in said and BOUND in (folder / "comparison.html").read_text()
    assert float(lines["vae"]["bits_per_dim"]) == 2.0 and lines["dcgan"]["error"] == "seed 1: the disk is full"
    of = {
        "network": "FD-digits-0",
        "samples": "100",
        "real_split": "test",
        "real_num": "90",
        "kernel_distance_error": "0.2",
    }
    assert lines["vae"].items() >= of.items() and lines["vae"]["data_fingerprint"] == "fedcba9876543210"
    assert (folder / "figures.png").stat().st_size > 10_000


def test_the_seed_that_is_shown_is_one_that_was_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({"vae": ["the disk is full", 5.0]}))
    args = ["--seeds", "2", "--systems", "vae", "--sizes", "8", "--workdir", str(tmp_path)]
    assert compare.command(args) == 0
    for name in ("comparison.md", "comparison.html"):
        text = (tmp_path / name).read_text()
        assert "vae/seed1 --" in text and "vae/seed0" not in text and "gave FD 5.00" in text


def test_images_that_there_are_not_are_said_before_training(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({"vae": [4.0]}))
    args = ["--seeds", "1", "--systems", "vae", "--sizes", "8", "--workdir", str(tmp_path / "x")]
    with pytest.raises(UserError, match="--num is 298: test of digits has 297 images"):
        compare.command([*args, "--num", "298"])
    assert not (tmp_path / "x").exists()
    assert compare.command([*args, "--likelihood-images", "500"]) == 0  # at the most
    *_, scored = json.loads((tmp_path / "x" / "vae" / "seed0.commands.json").read_text())
    assert "--likelihood-images 297" in scored


def test_stages_that_were_done_before_say_nothing_about_the_time_left(outcome, monkeypatch, capsys):
    folder, _ = outcome
    (folder / "vq_prior" / "seed1.evaluation.json").unlink()
    monkeypatch.setattr(processes, "run", pretend({"dcgan": [1.0, 2.0], "vq_prior": [9.0, 9.5]}))
    assert compare.command([*ARGUMENTS, "--workdir", str(folder)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.endswith("vae seed 0: train")]
    assert said == ["[4 of 9, about 5 min left] vae seed 0: train"]  # of two trainings, as long as the budget says


def test_the_time_left_is_that_of_the_stages_ahead_as_the_last_ones_took(tmp_path, monkeypatch, capsys):
    clock, pretended = [0.0], pretend({"vae": [4.0, 5.0], "dcgan": [1.0, 2.0], "vq_prior": [9.0, 9.5]})

    def run(words, log):
        clock[0] += 300.0 if words[0].endswith("train.py") and "/vae/" in " ".join(words) else 0.0
        pretended(words, log)

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock[0])
    args = ["--teraflops", "0.01", "--seeds", "2", "--systems", "vae", "--sizes", "8", "--workdir", str(tmp_path)]
    assert compare.command(args) == 0
    said = [line.partition("]")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    # 500 steps of half a second, and half a minute: 280 s each, which took 300.
    assert said == ["[1 of 3, about 2 min left", "[2 of 3, about 9 min left", "[3 of 3, about 5 min left"]


def test_images_of_fewer_levels_are_remarked_on_once():
    arguments = config.Arguments(minutes=1.0, seeds=1)
    about = lambda *levels: " ".join(report.about_lines(arguments, [row(n) for n in levels], []))
    row = lambda levels: {"cost": levels and {"levels": levels}, "seeds": {}}
    assert "Images have 17 levels" in about(17, None, 17) and "fewer than" not in about(17, None, 17)
    assert "trained on fewer than 256 levels says so" in about(17, 256) and "Images have" not in about(17, 256)
    assert "fewer than 256 levels" not in about(256, 256) and "Images have" not in about(256, None)


def test_the_page_holds_everything_itself(outcome):
    text = (outcome[0] / "comparison.html").read_text()
    assert text.count("<svg") == 2 and "failed: seed 1: the disk is full" in text and "5.00 ± 1.41" in text
    assert not re.findall(r"(?:src|href)=['\"](?!data:)[^'\"#]", text)


def test_the_best_of_a_column_is_bold():
    assert page.best_of("FD", ["9.5 ± 1.0", "-", "10.00 ± 0.1"]) == "9.5 ± 1.0"
    assert page.best_of("samples/s", ["9,494", "81,928", "57.7", "-"]) == "81,928"
    assert page.best_of("kernel distance", ["-0.1", "0.2"]) == "-0.1" and page.best_of("KID", ["-"]) == ""
    assert page.best_of("steps", ["1", "2"]) == ""
    text = page.table([["system", "FD"], ["a", "9.50"], ["b", "10.00"]], ())
    assert "<td class=best>9.50</td>" in text and text.count("class=best") == 1
    assert "class=best" not in page.table([["system", "bits/dim"], ["a", "9.50"]], (), ("bits/dim",))


@pytest.mark.parametrize("speeds", [(17_700.0, 20_800.0), (50.0, 50.0), (4.0, 200_000.0)])
def test_speeds_are_written_as_powers_of_ten(speeds):
    score = {"distance": {"mean": 3.0, "spread": None}}
    drawn = [{"system": str(i), "cost": {"samples_per_second": x}, "scores": score} for i, x in enumerate(speeds)]
    fig, axes = page.pyplot().subplots()
    page.draw_speed(axes, drawn, "FD")
    fig.canvas.draw()
    low, high = axes.get_xlim()
    shown = [text.get_text() for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert shown and set(shown) <= {f"{10**power:,}" for power in range(8)}
    assert not any(text.get_text() for text in axes.get_xticklabels(minor=True))
    assert low < min(speeds) and high > max(speeds)
    page.pyplot().close(fig)


def test_every_grid_is_in_one_picture(tmp_path):
    names = ["vae", "glow", "ddpm", "dcgan", "pixelcnn"]
    for number, name in enumerate(names):
        write_png(tmp_path / f"{name}.png", np.full((20, 20, 1), 50 * number, np.uint8))
    page.write_grids(tmp_path / "grids.png", [{"system": name, "grid": f"{name}.png"} for name in names])
    picture = np.asarray(Image.open(tmp_path / "grids.png").convert("L"))
    height, width = picture.shape
    centre = lambda line, column: picture[int((line + 0.5) * height / 2), int((column + 0.5) * width / 4)]
    assert [centre(0, i) for i in range(4)] == [0, 50, 100, 150] and centre(1, 0) == 200 and centre(1, 2) == 255


def test_the_budget_is_kept_and_divided_between_two_stages(outcome):
    commands = json.loads((outcome[0] / "vae" / "seed1.commands.json").read_text())
    assert "--train.steps 240" in commands[0] and "--seed 1" in commands[0]  # two minutes of half a second each
    stages = json.loads((outcome[0] / "vq_prior" / "seed0.commands.json").read_text())
    assert len(stages) == 3 and all("--train.steps 120" in line for line in stages[:2])
    assert "configs/vae/vq_vae.py:digits" in stages[0] and "--first-stage" in stages[1]


def test_the_best_checkpoint_is_scored_and_shown_where_a_score_tells_it(outcome):
    folder = outcome[0]
    for system, best in (("vae", True), ("dcgan", False)):
        trained, scored = json.loads((folder / system / "seed0.commands.json").read_text())
        assert "--train.validate-every 30 --train.checkpoint-every 30 --train.keep-every 30" in trained
        assert ("--step best" in scored) == best and f"/{system}/seed0.png --out" in scored
    for steps, part in ((247, "31"), (9, "2"), (1, "1")):  # at most eight, the last with them
        words = stages.train_words("configs/flow/glow.py:mnist", folder, steps, 0, None)
        assert words[words.index("--train.keep-every") + 1] == part and -(-steps // int(part)) <= 8
    found = {row["system"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}
    assert found["vae"]["grid"] == "vae/seed0.png" and found["vae"]["scores"]["steps"]["mean"] == 240
    head, *cells = rows.cost_table([found["vae"]], [])
    assert [dict(zip(head, cells[0]))[name] for name in ("steps", "best step")] == ["240", "180"]


def test_the_learning_rate_rises_for_a_tenth_of_the_steps_at_most(tmp_path):
    words = lambda steps: stages.train_words("configs/flow/glow.py:mnist", tmp_path, steps, 0, None)
    assert words(1000)[-2:] == ["--train.optimiser.warmup-steps", "100"]
    assert "--train.optimiser.warmup-steps" not in words(5000)  # the configuration's own 500


def test_a_run_goes_on_with_its_steps_in_a_moved_folder_and_at_another_speed(outcome, monkeypatch):
    folder, _ = outcome
    moved = folder.rename(folder.with_name("moved"))
    measured = json.loads((moved / "dcgan" / "measure.json").read_text())
    measured["own"]["step_seconds"] = 5.0
    (moved / "dcgan" / "measure.json").write_text(json.dumps(measured))
    ran, mended = [], pretend({"dcgan": [1.0, 2.0]})
    monkeypatch.setattr(processes, "run", lambda words, log: (ran.append(words), mended(words, log)))
    assert compare.command([*ARGUMENTS, "--workdir", str(moved)]) == 0
    assert ran[0][ran[0].index("--workdir") + 1] == str(moved / "dcgan" / "seed1") and "240" in ran[0]


def test_it_goes_on_where_it_was_stopped_and_tries_again_what_failed(outcome, monkeypatch):
    folder, _ = outcome
    ran, mended = [], pretend({"dcgan": [1.0, 2.0]})
    monkeypatch.setattr(processes, "run", lambda words, log: (ran.append(words), mended(words, log)))
    assert compare.command([*ARGUMENTS, "--workdir", str(folder)]) == 0
    assert len(ran) == 2 and all("seed1" in " ".join(words) and "dcgan" in " ".join(words) for words in ran)
    found = json.loads((folder / "comparison.json").read_text())["rows"][0]
    assert found["system"] == "dcgan" and found["errors"] == {} and len(found["seeds"]) == 2
    with pytest.raises(UserError, match="--minutes was 2.0, is 3.0"):
        compare.command([*ARGUMENTS, "--minutes", "3", "--workdir", str(folder)])
    begun = json.loads((folder / "arguments.json").read_text())
    (folder / "arguments.json").write_text(json.dumps(begun | {"model.latent of configs/vae/vae.py:digits": 3}))
    with pytest.raises(UserError, match="begun otherwise: model.latent of configs/vae/vae.py:digits was 3, is 16 "):
        compare.command([*ARGUMENTS, "--workdir", str(folder)])


def test_distances_are_called_fid_in_the_features_of_the_published_network_only(outcome, monkeypatch, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"weights")
    ran, pretended = [], pretend({"vae": [4.0]})

    def run(words, log):
        ran.append(words)
        pretended(words, log)
        for path in (tmp_path / "o").glob("*/*.evaluation.json"):
            document = json.loads(path.read_text())
            document["quality"]["network"] = "FID"
            path.write_text(json.dumps(document))

    args = ["--seeds", "1", "--systems", "vae", "--sizes", "8", "--inception", str(tmp_path / "x.pth")]
    with pytest.raises(UserError, match="^--inception: [^\n]*x.pth[^\n]*$"):  # known before anything is trained
        compare.command([*args, "--workdir", str(tmp_path / "o")])
    monkeypatch.setattr(compare, "check_inception", lambda path: None)
    monkeypatch.setattr(processes, "run", run)
    assert compare.command([*args, "--workdir", str(tmp_path / "o")]) == 0
    assert ran[-1][ran[-1].index("--inception") + 1] == str(tmp_path / "x.pth")
    text = (tmp_path / "o" / "comparison.md").read_text()
    assert "| FID | KID |" in text and "gave FID 4.00 (" in text and "KID 0.40000" in text and "not FID" not in text
    text = (outcome[0] / "comparison.md").read_text()
    assert "| FD | kernel distance |" in text and "FID" not in text.partition("not FID")[0]
    assert rows.columns("FD-inception-01234567")[:2] == (
        ("distance", "FD", 2),
        ("kernel_distance", "kernel distance", 5),
    )
    with pytest.raises(UserError, match=r"begun otherwise: --inception was .*x.pth, is  \(use another --workdir\)"):
        compare.command([*args[:-2], "--workdir", str(tmp_path / "o")])


def test_a_system_without_a_likelihood_has_no_protocol(outcome):
    head, *lines = rows.quality_table(json.loads((outcome[0] / "comparison.json").read_text())["rows"])
    found = {line[0]: dict(zip(head, line))["likelihood"] for line in lines}
    assert found["vae"] == BOUND and rows.likelihood({"cost": {"likelihood": "none"}}) == "-"


def test_sizes_that_are_missing_are_measured_and_nothing_else(outcome, monkeypatch):
    folder, _ = outcome
    ran, pretended = [], pretend({"dcgan": [1.0, 2.0]})
    monkeypatch.setattr(processes, "run", lambda words, log: (ran.append(words), pretended(words, log)))
    assert compare.command([*ARGUMENTS[:-2], "16", "32", "--seeds", "1", "--workdir", str(folder)]) == 0
    assert [words[1] for words in ran] == ["jgen.compare.measure"] * 3 and all("--add" in words for words in ran)
    text = (folder / "comparison.md").read_text()
    assert "20 / 50" in text and "at 32x32" in text


def test_fewer_seeds_average_those_that_are_asked_for(outcome):
    folder, _ = outcome
    assert compare.command([*ARGUMENTS, "--seeds", "1", "--workdir", str(folder)]) == 0
    by_name = {row["system"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}
    assert by_name["vae"]["scores"]["distance"] == {"mean": 4.0, "spread": None} and len(by_name["vae"]["seeds"]) == 1
    assert by_name["dcgan"]["errors"] == {} and list(by_name["dcgan"]["commands"]) == ["seed0"]


def test_what_scoring_needs_is_asked_for_before_training():
    assert compare.FEWEST == quality.FEWEST


def test_published_numbers_name_their_sources():
    marks = {mark for said in PUBLISHED.values() for mark in re.findall(r"\b([A-Z])\)", said)}
    assert marks == {"C", "F", "P"} and all(f"({mark})" in LEGEND for mark in marks)


def test_operations_as_the_budget():
    arguments = config.Arguments(teraflops=0.1)
    assert stages.steps_for(COST, arguments, 1.0) == 5000  # 20 million a step
    assert stages.steps_for(COST, arguments, 0.5) == 2500
    with pytest.raises(
        processes.Failed, match="1e-06 trillion operations is too short for one step, which takes 2e-05 trillion"
    ):
        stages.steps_for(COST, config.Arguments(teraflops=1e-6), 1.0)


def test_every_training_is_given_the_steps_of_the_same_operations(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({"vae": [4.0], "vq_prior": [9.0]}))
    args = ["--teraflops", "0.1", "--seeds", "1", "--systems", "vae,vq_prior", "--sizes", "8"]
    assert compare.command([*args, "--workdir", str(tmp_path)]) == 0
    steps = lambda system: [
        stages.steps_of(line)
        for line in json.loads((tmp_path / system / "seed0.commands.json").read_text())
        if "--train.steps" in line
    ]
    assert steps("vae") == [5000] and steps("vq_prior") == [2500, 2500]
    table = (tmp_path / "comparison.md").read_text()
    assert "as many steps as its operations put into 0.1 trillion operations" in table


@pytest.mark.parametrize(
    "args,words",
    [
        (["--systems", "vae,nothing"], ["'nothing'", "ddpm", "vae"]),
        (["--systems", "vq_vae"], ["vq_vae", "first stage", "vq_prior"]),
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
    ],
)
def test_mistakes_are_one_line(args, words, tmp_path):
    with pytest.raises(UserError) as caught:
        compare.command([*args, "--workdir", str(tmp_path / "x")])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not (tmp_path / "x").exists()


def test_words_of_an_error_are_no_tags():
    assert (
        rows.markdown([["a"], ["<class 'int'> | <= 3 </p>"]]).splitlines()[-1]
        == "| &lt;class 'int'> \\| <= 3 &lt;/p> |"
    )


def test_a_budget_too_short_for_one_step_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run", pretend({"vae": [1.0]}))
    with pytest.raises(UserError, match="0.001 minutes is too short for one step, which takes 0.5 s"):
        compare.command(["--minutes", "0.001", "--seeds", "1", "--systems", "vae", "--workdir", str(tmp_path)])


def test_figures_need_scores(tmp_path):
    assert page.figures([], "") == []


@pytest.mark.slow
def test_two_systems_end_to_end(python, tmp_path):
    args = ["-m", "jgen.compare", "--data", "tiny", "--minutes", "0.02", "--seeds", "1", "--systems", "vae,vq_prior"]
    done = python(*args, "--sizes", "8", "--samples", "100", "--num", "100", "--workdir", tmp_path / "x")
    document = json.loads((tmp_path / "x" / "comparison.json").read_text())
    assert all(row["scores"]["distance"]["mean"] > 0 and not row["errors"] for row in document["rows"])
    assert "vq_prior" in done.stdout and (tmp_path / "x" / "comparison.html").stat().st_size > 10_000
