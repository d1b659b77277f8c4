"""The mutants fit the sources, so that `make mutants` runs: each changes something and leaves valid Python."""

import ast
import shutil

import pytest

from tests.crash.mutants import MUTANTS, ROOT, apply


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.name)
def test_a_mutant_changes_the_sources_and_leaves_valid_python(one, tmp_path):
    paths = {path for path, _, _ in one.edits}
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    apply(tmp_path, one.edits)
    for path in paths:
        text = (tmp_path / path).read_text()
        assert text != (ROOT / path).read_text()
        ast.parse(text)
    assert all((ROOT / test.partition("::")[0]).is_file() for test in one.tests)


def test_an_edit_that_no_longer_fits_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(SystemExit, match=r"a\.py has 0 times"):
        apply(tmp_path, [("a.py", "y = 1", "")])
    assert (tmp_path / "a.py").read_text() == "x = 1\n"


def test_mutants_have_names_of_their_own():
    assert len({one.name for one in MUTANTS}) == len(MUTANTS) >= 10
