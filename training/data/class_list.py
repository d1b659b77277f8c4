"""Class lists: one class name per line.

Knows what a data set and a bundle make of class names, so that a list which passes here passes after training as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prompt_store.class_names import check_name
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import MAX_CLASSES
from training.data.dataset import reading_key, tidy_name
from training.errors import ClassListError

_SHOWN_CHARS: Final = 40  # of a refused name, in its message


def read_classes(path: Path) -> list[str]:
    """Read class names from a text file, one per line; blank lines are skipped, names are tidied (`tidy_name`).

    Raises:
        ClassListError: the file is no UTF-8 text (a byte order mark is allowed), holds no name or too many, a name that
            a bundle refuses, or two names that read the same; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"No class list could be read from {path}: expected UTF-8 text with one class name per line ({error})."
        raise ClassListError(msg) from error
    names: list[str] = []
    first_by_key: dict[str, tuple[int, str]] = {}
    # Not splitlines(): it would also cut at form feeds and U+2028, and count lines as no editor does.
    for n_line, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name = tidy_name(line)
        _check_for_bundles(name, f"The class list {path}, line {n_line}")
        first_line, first = first_by_key.setdefault(reading_key(name), (n_line, name))
        if first_line != n_line:
            msg = (
                f"The class list {path} names {name!r} twice: in line {n_line}, and as {first!r} in line {first_line}. "
                "Rename or remove one of them."
            )
            raise ClassListError(msg)
        if len(names) == MAX_CLASSES:
            msg = f"The class list {path}, line {n_line}: expected at most {MAX_CLASSES} classes; remove the rest."
            raise ClassListError(msg)
        names.append(name)
    if not names:
        msg = f"The class list {path} is empty; write one class name per line."
        raise ClassListError(msg)
    return names


def check_class_names(names: Sequence[str], of: str) -> None:
    """Refuse before the training what a bundle refuses after it, for names that came from folders or tables.

    Args:
        names: tidied names, all different to a reader.
        of: what they belong to, for messages.

    Raises:
        ClassListError: too many names, or one that a bundle refuses; says which and why.
    """
    if len(names) > MAX_CLASSES:
        msg = f"{of}: expected at most {MAX_CLASSES} classes, found {len(names)}; leave some out."
        raise ClassListError(msg)
    for index, name in enumerate(names):
        _check_for_bundles(name, f"{of}, class {index}")


def _check_for_bundles(name: str, where: str) -> None:
    """Refuse before the training what a bundle refuses after it.

    Raises:
        ClassListError: says where and why.
    """
    try:
        check_name(name, field=where)
    except BundleInvalidError as error:
        found = repr(name[:_SHOWN_CHARS]) + (" and more" if len(name) > _SHOWN_CHARS else "")
        msg = f"{error.detail}. Found {found}."
        raise ClassListError(msg) from error
