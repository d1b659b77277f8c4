"""Tables in pages: put between their marks, and nothing else touched."""

import pytest

from training.demo.pages import fill_page


def test_filling_a_page_replaces_only_what_stands_between_the_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- t:start -->\nold\n<!-- t:end -->\nafter\n")
    for text in ("| first |", "| second |"):
        fill_page(page, "t", text)
        assert page.read_text() == f"before\n<!-- t:start -->\n{text}\n<!-- t:end -->\nafter\n"


@pytest.mark.parametrize("text", ["nothing", "<!-- t:start -->", "<!-- t:start --><!-- t:end --><!-- t:end -->"])
def test_a_page_without_its_marks_is_refused_and_left_as_it_is(tmp_path, text):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="once each"):
        fill_page(page, "t", "new")
    assert page.read_text() == text
