"""Split names as people spell them: `Train`, `validation`, `test_set`, `hold-out`."""

import re
from collections.abc import Mapping
from typing import Final

from training.data.dataset import Split

_WORDS: Final[Mapping[Split, tuple[str, ...]]] = {
    "train": ("train", "training", "trainval", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"),
}
_SPLIT_BY_WORD: Final = {word: split for split, words in _WORDS.items() for word in words}
_FILLER: Final = re.compile(r"(data)?(set|split|data|images?|imgs?|photos|pictures)s?")


def split_of(name: str) -> Split | None:
    """The split that a name stands for, ignoring case, digits and words such as `set` and `images`; None if none."""
    words = [word for word in re.findall(r"[a-z]+", name.casefold()) if not _FILLER.fullmatch(word)]
    joined = "".join(words)
    return _SPLIT_BY_WORD.get(joined) or _SPLIT_BY_WORD.get(re.sub(rf"{_FILLER.pattern}$", "", joined))


def describe_spellings(spelled: Mapping[str, Split]) -> str:
    """One line that names the splits that are not spelled train, val or test, or nothing."""
    others = {name: split for name, split in spelled.items() if name != split}
    if not others:
        return ""
    return f"{', '.join(others)}: read as the split{'s' if len(others) > 1 else ''} {', '.join(others.values())}"
