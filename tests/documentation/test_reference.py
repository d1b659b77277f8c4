"""docs/reference/ is what the code generates."""

import pytest

from tests.documentation.reference import FOLDER, PAGES, escaped


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_up_to_date_with_the_code(name):
    written = (FOLDER / name).read_text(encoding="utf-8")

    assert written == escaped(PAGES[name]()), "run `make docs` and commit docs/reference"


def test_the_folder_has_no_other_pages():
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)
