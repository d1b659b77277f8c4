"""Rules for class names and class texts: what an answer may carry to a screen, a log or a file.

Knows Unicode. Does not know bundles: the caller passes strings and gets a position back, never the text.
"""

import unicodedata
from collections.abc import Iterable
from typing import Final

from prompt_store.errors import BundleInvalidError

MAX_NAME_CHARS: Final = 128
MAX_NAME_BYTES: Final = 512
_ZERO_WIDTH_JOINERS: Final = frozenset("\u200c\u200d")  # needed by several scripts and by emoji
_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _broken_rule(text: str) -> str | None:
    if not 1 <= len(text) <= MAX_NAME_CHARS:
        return f"1 to {MAX_NAME_CHARS} characters"
    if text.isascii():
        is_shown = text.isprintable()
    else:
        if any("\ud800" <= char <= "\udfff" for char in text) or len(text.encode("utf-8")) > MAX_NAME_BYTES:
            return f"at most {MAX_NAME_BYTES} bytes of UTF-8"
        if not unicodedata.is_normalized("NFC", text):
            return "Unicode normal form C"
        is_shown = all(unicodedata.category(char) not in _REFUSED or char in _ZERO_WIDTH_JOINERS for char in text)
    if not is_shown:
        return "no control, format, private or unassigned characters"
    if text != text.strip():
        return "no white space at either end"
    return None


def check_name(text: str, *, field: str) -> None:
    """Check one name or text.

    Raises:
        BundleInvalidError: `class_name`; `field` says where.
    """
    rule = _broken_rule(text)
    if rule is not None:
        raise BundleInvalidError("class_name", f"{field}: expected {rule}; correct it and write again", field=field)


def check_unique(names: Iterable[str]) -> None:
    """Refuse names that look alike to a person: equal after NFKC and case folding.

    Raises:
        BundleInvalidError: `class_duplicate`, with both positions.
    """
    first_by_key: dict[str, int] = {}
    for index, name in enumerate(names):
        key = unicodedata.normalize("NFKC", name).casefold()
        first = first_by_key.setdefault(key, index)
        if first != index:
            raise BundleInvalidError(
                "class_duplicate",
                f"classes[{index}].name: expected different names, found one equal to classes[{first}].name "
                "apart from case and width; rename or merge them",
                field=f"classes[{index}].name",
            )
