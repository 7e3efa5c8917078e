"""A finished comparison for the tests of this folder."""

import contextlib
import io
import shutil

import pytest
from pretended import ARGUMENTS, pretend

from jgen.compare import __main__ as compare
from jgen.compare import processes


@pytest.fixture(scope="session")
def first_outcome(tmp_path_factory):
    """A comparison's folder and what it printed."""
    folder, said = tmp_path_factory.mktemp("first") / "outcome", io.StringIO()
    distances = {"vae": [4.0, 6.0], "dcgan": [1.0, "the disk is full"], "vq_prior": [9.0, 9.5]}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(processes, "run", pretend(distances))
        assert compare.command([*ARGUMENTS, "--workdir", str(folder)]) == 0
    return folder, said.getvalue()


@pytest.fixture
def outcome(first_outcome, tmp_path):
    """A copy of it, to go on with."""
    folder, said = first_outcome
    return shutil.copytree(folder, tmp_path / "outcome"), said
