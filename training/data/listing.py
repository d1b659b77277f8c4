"""What lies in a folder: image files and class folders, in an order that every file system agrees on.

Hidden entries (names that start with a dot) are never seen.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from training.data.dataset import shorten
from training.errors import DatasetError

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def list_images(folder: Path) -> tuple[Path, ...]:
    """Image files below a folder, sorted by path. Links to folders inside are not followed; `folder` may be one."""
    found: list[str] = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [f"{top}{os.sep}{name}" for name in files if _is_image(name)]
    return tuple(Path(text) for text in sorted(found))


def has_images(folder: Path) -> bool:
    """Whether image files lie directly in a folder."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and entry.is_file() for entry in entries)


def list_folders(folder: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted; links to folders count."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def find_missing(paths: Iterable[Path]) -> list[Path]:
    """The paths at which there is no file, in the order given.

    Lists each folder once instead of asking for each file: data sets of 10^5 files often lie on network drives.
    """
    names_by_folder: dict[Path, frozenset[str]] = {}
    missing = []
    for path in paths:
        folder = path.parent
        if folder not in names_by_folder:
            names_by_folder[folder] = _names_in(folder)
        # A file system that ignores case or composes accents may know the file under another spelling.
        if path.name not in names_by_folder[folder] and not path.is_file():
            missing.append(path)
    return missing


def require_files(name: str, source: Path, paths: Sequence[Path]) -> None:
    """Refuse a list of images that are not all there.

    Raises:
        DatasetError: how many are missing, and the first ones.
    """
    missing = find_missing(paths)
    if missing:
        msg = (
            f"{name}: {len(missing)} of the {len(paths)} images that {source} lists are missing: {shorten(missing)}. "
            "Was the archive unpacked completely, and into this folder?"
        )
        raise DatasetError(msg)


def _names_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except OSError:
        return frozenset()


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
