"""`python -m jgen.compare --into`: systems are added to the record of an earlier comparison."""

import json
import shutil

import pytest
from conftest import ROOT
from pretended import ALONE, ARGUMENTS, DISTANCES, GENERATORS

from jgen.compare import __main__ as compare
from jgen.compare import config, record
from jgen.errors import UserError

NEW = next(system for system in GENERATORS if system.name not in DISTANCES)
GRIDS = {f"{name}.png" for name in (*DISTANCES, NEW.name)}


def rows_by_name(folder):
    return {row["system"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}


@pytest.fixture
def earlier(outcome, tmp_path):
    """A record: the files of a comparison without its runs, made of the data that is here now."""
    folder, _ = outcome
    for name in DISTANCES:
        shutil.rmtree(folder / name)
    for name in ("arguments.json", ".lock"):
        (folder / name).unlink()
    document = json.loads((folder / "comparison.json").read_text())
    document["command"] = "python -m jgen.compare " + " ".join([*ARGUMENTS, "--workdir", "runs/x"])
    (folder / "comparison.json").write_text(json.dumps(document | {"arguments": arguments_of_outcome()}))
    return folder


def arguments_of_outcome():
    return {"minutes": 2.0, "seeds": 2, "systems": ",".join(DISTANCES), "sizes": [8, 16], "workdir": "runs/x"}


@pytest.fixture(autouse=True)
def same_data(monkeypatch):
    """The data here is that of the pretended evaluations."""
    monkeypatch.setattr(compare, "look_at_data", lambda a, system: ("fedcba9876543210", 297))


def into(folder, workdir, *more):
    return compare.command(["--into", str(folder), "--systems", NEW.name, "--workdir", str(workdir), *more])


def test_a_system_is_added_and_the_rows_before_stay_as_they_were(earlier, tmp_path, ran):
    before, words = rows_by_name(earlier), ran({NEW.name: [2.0, 2.5]})
    assert into(earlier, tmp_path / "new") == 0
    assert all(str(tmp_path / "new") in " ".join(each) for each in words)  # nothing of the others is run again
    after = rows_by_name(earlier)
    assert set(after) == {*before, NEW.name} and {name: after[name] for name in before} == before
    row = after[NEW.name]
    assert len(row["seeds"]) == 2 and row["workdir"] == str(tmp_path / "new") and "cost" in row
    document = json.loads((earlier / "comparison.json").read_text())
    assert document["arguments"] == {**document["arguments"], **arguments_of_outcome()}
    assert document["command"].endswith("--workdir runs/x") and document["rows"] == sorted(
        document["rows"], key=lambda one: one["scores"]["distance"]["mean"]
    )


def test_all_files_of_the_record_are_written_with_every_grid(earlier, tmp_path, ran):
    ran({NEW.name: [2.0, 2.5]})
    assert into(earlier, tmp_path / "new") == 0
    assert {path.name for path in (earlier / "grids").iterdir()} == GRIDS
    html = (earlier / "comparison.html").read_text()
    assert html.count("<img") == len(GRIDS)
    for name in ("comparison.md", "comparison.csv", "comparison.html"):
        text = (earlier / name).read_text()
        assert all(system in text for system in (*DISTANCES, NEW.name))
    assert "--workdir runs/x" in html and (earlier / "grids.png").stat().st_size > 1000


@pytest.mark.slow
def test_grids_that_a_record_has_only_in_its_page_are_stored(earlier, tmp_path, ran):
    pictures = {path.name: path.read_bytes() for path in (earlier / "grids").iterdir()}
    shutil.rmtree(earlier / "grids")
    ran({NEW.name: [2.0, 2.5]})
    assert into(earlier, tmp_path / "new") == 0
    assert all((earlier / "grids" / name).read_bytes() == picture for name, picture in pictures.items())


def test_it_goes_on_where_it_was_stopped(earlier, tmp_path, ran):
    ran({NEW.name: [2.0, "the disk is full"]})
    assert into(earlier, tmp_path / "new") == 0
    assert rows_by_name(earlier)[NEW.name]["errors"] == {"seed 1": "the disk is full"}
    words = ran({NEW.name: [2.0, 2.5]})
    assert into(earlier, tmp_path / "new") == 0
    assert len(words) == len(NEW.training.in_order()) + 1 and "seed1" in " ".join(words[-1])
    assert rows_by_name(earlier)[NEW.name]["errors"] == {}


@pytest.mark.slow
def test_a_row_is_replaced_once_the_new_one_has_a_score(earlier, tmp_path, ran):
    before, words = rows_by_name(earlier), ran({ALONE.name: ["the disk is full", "the disk is full"]})
    replace = ["--systems", ALONE.name, "--replace"]
    assert into(earlier, tmp_path / "new", *replace) == 0
    assert words and rows_by_name(earlier) == before
    ran({ALONE.name: [2.0, 2.5]})
    assert into(earlier, tmp_path / "new", *replace) == 0
    after = rows_by_name(earlier)
    row = after.pop(ALONE.name)
    assert row["workdir"] == str(tmp_path / "new")
    assert {score["distance"] for score in row["seeds"].values()} == {2.0, 2.5}
    assert after == {name: other for name, other in before.items() if name != ALONE.name}
    with pytest.raises(UserError, match="--replace needs --into, and with --systems"):
        into(earlier, tmp_path / "new", "--systems", "all", "--replace")


def test_a_comparison_s_own_folder_takes_further_systems(outcome, ran):
    folder, _ = outcome
    begun = json.loads((folder / "arguments.json").read_text())
    (folder / "arguments.json").write_text(json.dumps(begun | {"hash of the data": "fedcba9876543210"}))
    before, words = rows_by_name(folder), ran({NEW.name: [2.0, 2.5]})
    assert compare.command(["--into", str(folder), "--systems", NEW.name]) == 0
    assert words and all(f"/{NEW.name}/" in " ".join(each) for each in words)
    after = rows_by_name(folder)
    assert {name: after[name] for name in before} == before and len(after[NEW.name]["seeds"]) == 2


@pytest.mark.parametrize(
    "more,message",
    [
        (["--minutes", "3"], "--minutes was 2.0, is 3.0"),
        (["--teraflops", "1"], "--teraflops was 0.0, is 1.0"),
        (["--samples", "500"], "--samples was 1000, is 500"),
        (["--num", "90"], "--num was 0, is 90"),
        (["--data", "mnist"], "--data was digits, is mnist"),
        (["--likelihood-images", "9"], "--likelihood-images was 200, is 9"),
        (["--inception", "x.pth"], "--inception was not given, is x.pth"),
        (["--systems", ALONE.name], f"has a row of {ALONE.name} already"),
    ],
)
def test_another_protocol_is_refused_before_anything_is_trained(earlier, tmp_path, ran, more, message):
    words = ran({})
    with pytest.raises(UserError, match=message):
        into(earlier, tmp_path / "new", *more)
    assert not words and not (tmp_path / "new").exists()


def test_other_data_is_refused(earlier, tmp_path, monkeypatch, ran):
    monkeypatch.setattr(compare, "look_at_data", lambda a, system: ("0000", 297))
    ran({})
    with pytest.raises(UserError, match="is of data with the hash fedcba987654, that of the data here is 0000"):
        into(earlier, tmp_path / "new")


def test_scores_by_another_protocol_are_an_error_of_their_seed(earlier, tmp_path, ran):
    ran({NEW.name: [2.0, 2.5]}, data="of another hash")
    assert into(earlier, tmp_path / "new") == 0
    row = rows_by_name(earlier)[NEW.name]
    assert not row["seeds"] and "others with FD-digits-0, 100 samples to 90 test images" in row["errors"]["seed 0"]


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("comparison-*/comparison.json")), ids=str)
def test_a_record_that_is_published_can_be_added_to(path):
    document = json.loads(path.read_text())
    arguments = record.arguments_of(document)
    assert arguments.data == document["data"] and config.describe_budget(arguments) == document["budget"]
    words = ["--into", str(path.parent), "--systems", NEW.name]
    parsed, earlier = record.parse_arguments(words, "", "")
    assert parsed.minutes == arguments.minutes and parsed.workdir == f"runs/{path.parent.name}"
    for row in earlier.document["rows"]:
        assert record.grid_in_page(path.parent / "comparison.html", row["system"]) is not None
