"""Normalization and validation of class names and class texts, which end up in responses, logs and terminals.

Messages give the position of a name, never the name itself.
"""

import unicodedata
from collections.abc import Iterable
from typing import Final

from prompt_store.errors import BundleInvalidError

MAX_NAME_CHARS: Final = 128
MAX_NAME_BYTES: Final = 512
UNLABELLED: Final = "unlabelled"
"""The name of pictures without a label, in every spelling."""
_ZERO_WIDTH_JOINERS: Final = frozenset("\u200c\u200d")  # needed by several scripts and by emoji
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _violation(text: str) -> str | None:
    if not 1 <= len(text) <= MAX_NAME_CHARS:
        return f"must have 1 to {MAX_NAME_CHARS} characters"
    if text.isascii():
        is_printable = text.isprintable()
    else:
        if any("\ud800" <= char <= "\udfff" for char in text) or len(text.encode("utf-8")) > MAX_NAME_BYTES:
            return f"must have at most {MAX_NAME_BYTES} bytes in UTF-8"
        if not unicodedata.is_normalized("NFC", text):
            return "must be in Unicode normal form C (NFC)"
        is_printable = all(
            unicodedata.category(char) not in _FORBIDDEN_CATEGORIES or char in _ZERO_WIDTH_JOINERS for char in text
        )
    if not is_printable:
        return "must not contain control, format, private-use or unassigned characters"
    if text != text.strip():
        return "must not start or end with whitespace"
    return None


def check_name(text: str, *, field: str) -> None:
    """Validate one name or text.

    Raises:
        BundleInvalidError: `class_name`; `field` gives the position.
    """
    rule = _violation(text)
    if rule is not None:
        raise BundleInvalidError("class_name", f"{field} {rule}.", field=field)


def check_unique(names: Iterable[str], *, field: str = "classes[{}].name") -> None:
    """Reject duplicate names, compared after NFKC normalization and case folding; `field` is a format of positions.

    Raises:
        BundleInvalidError: `class_duplicate`, with both positions.
    """
    first_by_key: dict[str, int] = {}
    for index, name in enumerate(names):
        first = first_by_key.setdefault(_folded(name), index)
        if first != index:
            raise BundleInvalidError(
                "class_duplicate",
                f"{field.format(index)} duplicates {field.format(first)}, ignoring case and character width.",
                field=field.format(index),
            )


def normalize_name(name: str) -> str:
    """Normalize a class name: `_` becomes a space, whitespace is collapsed, Unicode is composed (NFC)."""
    return unicodedata.normalize("NFC", " ".join(name.replace("_", " ").split()))


def comparison_key(name: str) -> str:
    """A key for comparing names: normalized, ignoring case and character width."""
    return _folded(normalize_name(name))


def spellings(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """The first known name for each of `names` that differs from one in case or character width at most."""
    by_key: dict[str, str] = {}
    for name in known:
        by_key.setdefault(comparison_key(name), name)
    keys = ((name, comparison_key(name)) for name in names)
    return {name: by_key[key] for name, key in keys if key in by_key}


def normalize_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Normalize the labels of an open-vocabulary request as class names, and validate them.

    Raises:
        BundleInvalidError: an invalid or duplicate label; the message and `field` give its position.
    """
    names = tuple(normalize_name(label) for label in labels)
    for index, name in enumerate(names):
        check_name(name, field=f"labels[{index}]")
    check_unique(names, field="labels[{}]")
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()
