"""Class lists: one class name per line."""

from pathlib import Path

from training.errors import ClassListError


def read_classes(path: Path) -> list[str]:
    """Read class names from a text file, one per line; blank lines are skipped and `_` becomes a space.

    Raises:
        ClassListError: the file cannot be read, holds no name, or holds one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"No class list could be read from {path}: expected UTF-8 text with one class name per line ({error})."
        raise ClassListError(msg) from error
    names = [" ".join(line.replace("_", " ").split()) for line in lines if line.strip()]
    if not names:
        msg = f"The class list {path} is empty; write one class name per line."
        raise ClassListError(msg)
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in seen:
            msg = f"The class list {path} names {name!r} twice (also as {seen[name.casefold()]!r})."
            raise ClassListError(msg)
        seen[name.casefold()] = name
    return names
