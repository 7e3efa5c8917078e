"""What a comparison writes: its tables, the page, the figures."""

import csv
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from pretended import ALONE, COST, GENERATORS, NO_BEST, PROTOCOL, STAGED

from jgen.compare import config, page, report, rows, tables
from jgen.compare.facts import SOURCES, legend
from jgen.data.pictures import write_png

BOUND = "bound (16 levels, 200 test images, uniform dequantisation, K = 5)"
GAVE = (
    "FD 4.00 (3.50 to 4.50), kernel distance 0.4 ± 0.2 over images, precision 0.500 (0.400 to 0.600), recall 0.250,"
    " memorisation, % 60.0, class accuracy, % 90.0 (85.0 to 95.0), bits/dim 2.000 ± 0.010 over images;"
    " in brackets, 95 % by bootstrap of the images"
)


def test_the_table_has_every_system_best_first_with_spread_and_errors(outcome):
    folder, printed = outcome
    document = json.loads((folder / "comparison.json").read_text())
    by_name = {row["system"]: row for row in document["rows"]}
    assert [row["system"] for row in document["rows"]] == [NO_BEST.name, ALONE.name, STAGED.name]
    assert by_name[ALONE.name]["scores"]["distance"] == {"mean": 5.0, "spread": pytest.approx(2**0.5)}
    assert by_name[NO_BEST.name]["errors"] == {"seed 1": "the disk is full"}
    assert by_name[ALONE.name]["protocol"] == PROTOCOL
    for system in (ALONE, NO_BEST, STAGED):
        row, facts = by_name[system.name], system.training.facts
        assert row["published"] == facts.published and row["cost"]["free_form_jacobian"] == facts.free_form_jacobian
    assert "5.00 ± 1.41" in printed and BOUND in printed


def test_the_report_states_its_protocol_and_how_to_repeat_a_row(outcome):
    folder, _ = outcome
    text, html = (folder / "comparison.md").read_text(), (folder / "comparison.html").read_text()
    for part in ("5.00 ± 1.41", BOUND, "fedcba987654", "failed: seed 1: the disk is full", "does not fit"):
        assert part in text
    frozen = STAGED.training.in_order()[0].name.removesuffix("-digits")
    assert "50 steps of ddim, guidance scale 2" in text and f"frozen models: {STAGED.name} on {frozen}" in text
    assert "puts into 2 minutes, on 2 x CPU; seeds 0 to 1" in text and "took 1.0 to 1.0 minutes" in text
    assert "jax 0.12, 0.11, Python 3.12, L, commit 0123456789ab+." in text
    real = "100 real images of the train split, in place of samples, have FD 0.25, recall 0.900."
    assert real in text and real in html and BOUND in html
    assert f"```\n\ngave {GAVE}." in text and f"# gave {GAVE}" in html


def test_every_number_is_in_the_csv(outcome):
    folder, _ = outcome
    with (folder / "comparison.csv").open() as file:
        lines = {line["system"]: line for line in csv.DictReader(file)}
    line = lines[ALONE.name]
    assert line["likelihood_num"] == "200" and float(line["bits_per_dim"]) == 2.0
    assert lines[NO_BEST.name]["error"] == "seed 1: the disk is full"
    wanted = {"network": "FD-digits-0", "samples": "100", "real_split": "test", "real_num": "90"}
    wanted |= {"kernel_distance_error": "0.2", "data_fingerprint": "fedcba9876543210"}
    assert line.items() >= wanted.items()
    assert (folder / "figures.png").stat().st_size > 10_000


def test_images_of_fewer_levels_are_remarked_on_once():
    arguments = config.Arguments(minutes=1.0, seeds=1)

    def about(*levels):
        compared = [{"system": "x", "cost": level and {"levels": level}, "seeds": {}} for level in levels]
        return " ".join(report.about_lines(arguments, compared))

    assert "Images have 17 levels" in about(17, None, 17) and "fewer than" not in about(17, None, 17)
    assert "trained on fewer than 256 levels" in about(17, 256) and "Images have" not in about(17, 256)
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
    names = ["a", "b", "c", "d", "e"]
    for number, name in enumerate(names):
        write_png(tmp_path / f"{name}.png", np.full((20, 20, 1), 50 * number, np.uint8))
    page.write_grids(tmp_path / "grids.png", [{"system": name, "grid": f"{name}.png"} for name in names])
    picture = np.asarray(Image.open(tmp_path / "grids.png").convert("L"))
    height, width = picture.shape

    def centre(line, column):
        return picture[int((line + 0.5) * height / 2), int((column + 0.5) * width / 4)]

    assert [centre(0, i) for i in range(4)] == [0, 50, 100, 150] and centre(1, 0) == 200 and centre(1, 2) == 255


def test_a_system_without_a_likelihood_has_no_protocol(outcome):
    head, *lines = tables.quality_table(json.loads((outcome[0] / "comparison.json").read_text())["rows"])
    cells = {line[0]: dict(zip(head, line))["likelihood"] for line in lines}
    assert cells[ALONE.name] == BOUND and tables.likelihood({"cost": {"likelihood": "none"}}) == "-"


def test_what_is_not_stated_or_not_measured_is_a_dash():
    cost = {**COST, "free_form_jacobian": None}
    del cost["samples_per_second"]
    row = {"system": "x", "cost": cost, "scores": {}, "sizes": {"8": {"images_per_second": 3.0}}}
    head, cells = tables.cost_table([row], [8])
    named = dict(zip(head, cells))
    assert named["free-form Jacobian"] == "-" and named["samples/s"] == "-"
    assert named["training / sampling images/s at 8x8"] == "3 / -"


def test_published_numbers_name_their_sources():
    texts = [system.training.facts.published for system in GENERATORS]
    marks = {mark for text in texts for mark in re.findall(r"\b([A-Z])\)", text)}
    assert marks <= set(SOURCES) and all(f"({mark})" in legend(texts) for mark in marks)
    assert legend(["FID 3"]) == "Published: of the papers."


@dataclass(frozen=True)
class Options:
    """Options of a sampler unlike any of jgen's."""

    steps: int = 20
    solver: str = "heun"
    tolerance: float = 1e-3
    times: tuple[int, ...] = ()
    clip: bool = True
    mean: bool = False


@pytest.mark.parametrize(
    "options,text",
    [
        ({"steps": 20, "solver": "heun", "tolerance": 1e-3, "times": [], "clip": True, "mean": False}, "20 steps"),
        ({"solver": "euler", "tolerance": 0.5}, "solver euler, tolerance 0.5"),
        ({"times": [3, 2, 1], "clip": False, "mean": True}, "3 times, no clip, mean"),
        ({"steps": 5, "sampler": "ddim"}, "5 steps of ddim"),
        ({}, "as trained"),
    ],
)
def test_options_of_sampling_that_are_not_the_defaults_are_shown(options, text):
    assert rows.describe_sampling(options, Options()) == text


def test_words_of_an_error_are_no_tags():
    table = tables.markdown([["a"], ["<class 'int'> | <= 3 </p>"]])
    assert table.splitlines()[-1] == "| &lt;class 'int'> \\| <= 3 &lt;/p> |"


def test_figures_need_scores():
    assert page.figures([], "") == []
