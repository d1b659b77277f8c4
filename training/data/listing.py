"""List image files and folders in a sorted, file-system independent order; hidden entries are skipped."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from training.data.dataset import shorten
from training.errors import DatasetError

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def list_images(folder: Path) -> tuple[Path, ...]:
    """Image files in a folder, recursively, sorted by path. Symbolic links to folders are not followed."""
    found: list[str] = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [f"{top}{os.sep}{name}" for name in files if _is_image(name)]
    return tuple(Path(text) for text in sorted(found))


def has_images(folder: Path) -> bool:
    """Whether a folder directly contains image files."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and entry.is_file() for entry in entries)


def list_folders(folder: Path) -> list[str]:
    """Names of the direct subfolders, sorted, including symbolic links to folders."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def find_missing(paths: Iterable[Path]) -> list[Path]:
    """The paths without a file, in the given order.

    Lists each folder once instead of checking each file, which is slow for 10^5 files on a network drive.
    """
    names_by_folder: dict[Path, frozenset[str]] = {}
    missing = []
    for path in paths:
        folder = path.parent
        if folder not in names_by_folder:
            names_by_folder[folder] = _names_in(folder)
        # File systems that ignore case or compose accents may store another spelling.
        if path.name not in names_by_folder[folder] and not path.is_file():
            missing.append(path)
    return missing


def require_files(name: str, source: Path, paths: Sequence[Path]) -> None:
    """Check that all listed images exist.

    Raises:
        DatasetError: images are missing.
    """
    missing = find_missing(paths)
    if missing:
        msg = (
            f"{name}: {len(missing)} of {len(paths)} images listed in {source} are missing: {shorten(missing)}. "
            "Check that the archive was unpacked completely into this folder."
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
