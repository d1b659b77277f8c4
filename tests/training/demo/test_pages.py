"""Generated tables in documentation pages."""

import pytest

from training.demo.pages import fill_page


def test_filling_a_page_replaces_the_text_between_the_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- t:start -->\nold\n<!-- t:end -->\nafter\n")
    for text in ("| first |", "| second |"):
        fill_page(page, "t", text)
        assert page.read_text() == f"before\n<!-- t:start -->\n{text}\n<!-- t:end -->\nafter\n"


@pytest.mark.parametrize("text", ["nothing", "<!-- t:start -->", "<!-- t:start --><!-- t:end --><!-- t:end -->"])
def test_a_page_without_markers_is_an_error_and_unchanged(tmp_path, text):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="once each"):
        fill_page(page, "t", "new")
    assert page.read_text() == text
