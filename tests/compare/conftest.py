"""A finished comparison for the tests of this folder."""

import contextlib
import io
import shutil

import pytest
from pretended import ARGUMENTS, DISTANCES, pretend

from jgen.compare import __main__ as compare
from jgen.compare import page, processes


def draw_nothing(axes, drawn, network):
    axes.set_axis_off()


@pytest.fixture(autouse=True)
def quick_figures(request, monkeypatch):
    """Figures without axes, which take seconds to lay out, where they are not what is tested."""
    if not request.module.__name__.endswith("test_report"):
        monkeypatch.setattr(page, "FIGURES", [(draw_nothing, caption) for _, caption in page.FIGURES])


@pytest.fixture(scope="session")
def first_outcome(cache, tmp_path_factory):
    """A comparison's folder and what it printed."""
    folder, printed = tmp_path_factory.mktemp("first") / "outcome", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(processes, "run", pretend(DISTANCES))
        assert compare.command([*ARGUMENTS, "--workdir", str(folder)]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def outcome(first_outcome, tmp_path):
    """A copy of it, to go on with."""
    folder, printed = first_outcome
    return shutil.copytree(folder, tmp_path / "outcome"), printed


@pytest.fixture
def ran(monkeypatch):
    """Runs pretended programs; returns the words of those that were run."""

    def start(distances, **options):
        words_of_all, run = [], pretend(distances, **options)
        monkeypatch.setattr(processes, "run", lambda words, log: (words_of_all.append(words), run(words, log)))
        return words_of_all

    return start
