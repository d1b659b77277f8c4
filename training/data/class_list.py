"""Class lists: one class name per line, validated by the bundle's rules before training starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prompt_store.class_names import check_name, comparison_key, normalize_name
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import MAX_CLASSES
from training.errors import ClassListError

_SHOWN_CHARS: Final = 40  # of an invalid name, in the message


def read_classes(path: Path) -> list[str]:
    """Read class names from a text file, one per line; blank lines are skipped, names are normalized.

    Raises:
        ClassListError: not UTF-8 text (a byte order mark is allowed), no names or too many, an invalid name, or
            duplicate names; the message gives the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Cannot read the class list {path}: it must be UTF-8 text with one class name per line ({error})."
        raise ClassListError(msg) from error
    names: list[str] = []
    first_by_key: dict[str, tuple[int, str]] = {}
    # Not splitlines(): it also splits at form feeds and U+2028, so line numbers would differ from an editor's.
    for n_line, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name = normalize_name(line)
        _check_for_bundles(name, f"The class list {path}, line {n_line}")
        first_line, first = first_by_key.setdefault(comparison_key(name), (n_line, name))
        if first_line != n_line:
            msg = (
                f"The class list {path} contains {name!r} twice: in line {n_line}, and as {first!r} in line "
                f"{first_line}. Rename or remove one of them."
            )
            raise ClassListError(msg)
        if len(names) == MAX_CLASSES:
            msg = f"The class list {path} has more than {MAX_CLASSES} classes, see line {n_line}."
            raise ClassListError(msg)
        names.append(name)
    if not names:
        msg = f"The class list {path} is empty; write one class name per line."
        raise ClassListError(msg)
    return names


def check_class_names(names: Sequence[str], of: str) -> None:
    """Validate class names from folders or tables by the bundle's rules, before training starts.

    Args:
        names: normalized, distinct names.
        of: the data set's name, for messages.

    Raises:
        ClassListError: too many names, or an invalid name.
    """
    if len(names) > MAX_CLASSES:
        msg = f"{of} has {len(names)} classes; the limit is {MAX_CLASSES}."
        raise ClassListError(msg)
    for index, name in enumerate(names):
        _check_for_bundles(name, f"{of}, class {index}")


def _check_for_bundles(name: str, where: str) -> None:
    """Validate one name by the bundle's rules.

    Raises:
        ClassListError: with position and reason.
    """
    try:
        check_name(name, field="the name")
    except BundleInvalidError as error:
        found = repr(name[:_SHOWN_CHARS]) + (" and more" if len(name) > _SHOWN_CHARS else "")
        msg = f"{where}: {error.detail} Found {found}."
        raise ClassListError(msg) from error
