"""Tables in pages: measured numbers go between two marks, so that no page holds a number that no command wrote."""

from pathlib import Path


def fill_page(page: Path, name: str, text: str) -> None:
    """Put text between a page's marks `<!-- name:start -->` and `<!-- name:end -->`, instead of what is there.

    Raises:
        ValueError: a mark is missing, or there twice.
    """
    marks = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    whole = page.read_text(encoding="utf-8")
    if not all(whole.count(mark) == 1 for mark in marks):
        msg = f"{page} needs the marks {' and '.join(marks)} once each."
        raise ValueError(msg)
    head, rest = whole.split(marks[0])
    _, tail = rest.split(marks[1])
    page.write_text(f"{head}{marks[0]}\n{text}\n{marks[1]}{tail}", encoding="utf-8")
