"""Generated tables in documentation pages, between two markers."""

from pathlib import Path


def fill_page(page: Path, name: str, text: str) -> None:
    """Replace the text between a page's markers `<!-- name:start -->` and `<!-- name:end -->`.

    Raises:
        ValueError: a marker is missing or duplicated.
    """
    marks = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    whole = page.read_text(encoding="utf-8")
    if not all(whole.count(mark) == 1 for mark in marks):
        msg = f"{page} must contain the markers {' and '.join(marks)} once each."
        raise ValueError(msg)
    head, rest = whole.split(marks[0])
    _, tail = rest.split(marks[1])
    page.write_text(f"{head}{marks[0]}\n{text}\n{marks[1]}{tail}", encoding="utf-8")
