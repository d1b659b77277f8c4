"""List image files and folders in a sorted, file-system independent order, and count everything that is left out."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from training.data.dataset import shorten
from training.errors import DatasetError

JPEG_SUFFIXES: Final = frozenset({".jfif", ".jpe", ".jpeg", ".jpg"})
SERVED_SUFFIXES: Final = JPEG_SUFFIXES | {".png", ".webp"}
"""Formats that the service accepts."""
SUFFIXES: Final = SERVED_SUFFIXES | {".bmp", ".tif", ".tiff"}
"""Formats that are read for training. GIFs are left out: most are animations or drawings."""
CONVERTIBLE_SUFFIXES: Final = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".jxl", ".tif", ".tiff"})
"""Formats of pictures that the service does not accept."""

_SYSTEM_FOLDERS: Final = frozenset(
    {"#recycle", "#snapshot", "$recycle.bin", "@eadir", "__macosx", "lost+found", "system volume information"}
)
_SYSTEM_FILES: Final = frozenset({".ds_store", "desktop.ini", "thumbs.db"})
_FOLDER: Final = "/"  # last character of a folder's label
_HIDDEN: Final = "hidden"


@dataclass(frozen=True)
class Listing:
    """Images, and the number of files and folders that are left out, by label.

    Attributes:
        images: sorted by path.
        left_out: labels are a suffix (`.gif`), `hidden`, or the name of a system file or folder; those of folders end
            in `/`, and their contents are not counted.
    """

    images: tuple[Path, ...]
    left_out: Counter[str]


@dataclass(frozen=True)
class FolderContents:
    """Direct contents of a folder: sorted names of images and subfolders, and `left_out` as in `Listing`.

    Attributes:
        links: the subfolders that are symbolic links.
    """

    images: tuple[str, ...]
    folders: tuple[str, ...]
    links: frozenset[str]
    left_out: Counter[str]


def scan_folder(folder: Path, suffixes: Collection[str] = SUFFIXES) -> FolderContents:
    """The direct contents of a folder. Links to files and folders are followed.

    Raises:
        OSError: the folder cannot be read.
    """
    images: list[str] = []
    folders: list[str] = []
    links: set[str] = set()
    left_out: Counter[str] = Counter()
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder and not _is_system_folder(entry.name):
                folders.append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
            elif is_file and _is_image(entry.name, suffixes):
                images.append(entry.name)
            else:
                left_out[_label(entry.name, is_folder=is_folder, is_file=is_file)] += 1
    return FolderContents(tuple(sorted(images)), tuple(sorted(folders)), frozenset(links), left_out)


def list_images(folder: Path, suffixes: Collection[str] = SUFFIXES) -> Listing:
    """The images in a folder and its subfolders.

    Links to folders are followed, except to those that contain this one; every folder is read once.

    Raises:
        OSError: a folder cannot be read.
    """
    found: list[str] = []
    left_out: Counter[str] = Counter()
    ancestors = {*folder.absolute().parents, *folder.resolve().parents}
    seen = {(status.st_dev, status.st_ino) for status in map(Path.stat, ancestors)}
    folders, links = [folder], list[Path]()
    while folders or links:
        # Links last: a folder is listed under its own path rather than under that of a link to it.
        top = folders.pop() if folders else links.pop(0)
        status = top.stat()
        if (status.st_dev, status.st_ino) in seen:
            left_out[f"repeated link{_FOLDER}"] += 1
            continue
        seen.add((status.st_dev, status.st_ino))
        contents = scan_folder(top, suffixes)
        found += [f"{top}{os.sep}{name}" for name in contents.images]
        folders += [top / name for name in contents.folders if name not in contents.links]
        links += [top / name for name in contents.folders if name in contents.links]
        left_out += contents.left_out
    return Listing(tuple(Path(text) for text in sorted(found)), left_out)


def list_folders(folder: Path) -> tuple[str, ...]:
    """Names of the direct subfolders, sorted, without hidden and system folders; links to folders are included."""
    return scan_folder(folder).folders


def describe_left_out(left_out: Counter[str]) -> str:
    """One line such as `3 files not read: 2 .gif, 1 .txt; 1 folder not read: 1 @eaDir`, or nothing.

    System files are last.
    """
    parts = []
    for noun in ("file", "folder"):
        kinds = {label: n for label, n in left_out.items() if label.endswith(_FOLDER) == (noun == "folder")}
        total = sum(kinds.values())
        if total:
            ordered = sorted(kinds.items(), key=lambda kind: (_is_system(kind[0]), -kind[1], kind[0]))
            listed = shorten(f"{n} {label.removesuffix(_FOLDER)}" for label, n in ordered)
            parts.append(f"{total} {noun}{'s' if total > 1 else ''} not read: {listed}")
    return "; ".join(parts)


def _is_system(label: str) -> bool:
    """Whether files with this label are none of the user's."""
    return label == _HIDDEN or label.lower() in _SYSTEM_FILES


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


def suggest_root(data_root: Path, folder: str) -> str:
    """A hint at the folder to pass instead of `data_root`, if `folder` is in a folder above it or directly below it."""
    if (data_root / folder).exists():
        return ""
    above = data_root.resolve().parents[: len(Path(folder).parts)]
    below = [data_root / name for name in list_folders(data_root)] if data_root.is_dir() else []
    found = next((place for place in (*above, *below) if (place / folder).is_dir()), None)
    return f" Pass {found} instead, which contains {folder}/." if found else ""


def _names_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except OSError:
        return frozenset()


def _is_image(name: str, suffixes: Collection[str]) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in suffixes


def _is_system_folder(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def _label(name: str, *, is_folder: bool, is_file: bool) -> str:
    """The label of something that is left out."""
    if is_folder:
        return f"{name}{_FOLDER}"
    if not is_file:
        return "broken link or special file"
    if name.casefold() in _SYSTEM_FILES:
        return name
    if name.startswith("."):
        return _HIDDEN
    suffix = Path(name).suffix.lower()
    return suffix if re.fullmatch(r"\.\w{1,10}", suffix) else "other"
