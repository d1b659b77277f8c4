"""The pictures in files and folders, in the formats that a server accepts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from caspl.operations import BYTES_PER_REQUEST, IMAGES_PER_REQUEST
from caspl.requests import chunks
from training.data.listing import SERVED_SUFFIXES, describe_left_out, list_images, scan_folder


@dataclass(frozen=True)
class Pictures:
    """Picture files.

    Attributes:
        files: each once, in the order of the paths, those of a folder sorted.
        notes: lines for the user: files and folders that are not read.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def find_pictures(paths: "str | PathLike[str] | Iterable[str | PathLike[str]]", *, recursive: bool) -> Pictures:
    """Replace folders by the pictures in them; files are kept whatever their name.

    Args:
        paths: files and folders.
        recursive: include the pictures in subfolders.

    Raises:
        OSError: a path does not exist, or a folder cannot be read.
    """
    files: list[Path] = []
    notes: list[str] = []
    for path in [Path(paths)] if isinstance(paths, str | PathLike) else map(Path, paths):
        path.stat()
        if not path.is_dir():
            files.append(path)
            continue
        images, left_out, n_folders = _in_folder(path, recursive=recursive)
        files += images
        facts = [describe_left_out(left_out)] if left_out else []
        facts += [f"{n_folders} subfolder{'s' if n_folders > 1 else ''} not read without --recursive"] * bool(n_folders)
        if facts or not images:
            notes.append("; ".join([f"{path}: {len(images)} pictures", *facts]))
    unique = tuple(dict.fromkeys(files))
    if len(unique) < len(files):
        notes.append(f"Duplicate paths, read once: {len(files) - len(unique)}.")
    return Pictures(unique, tuple(notes))


def _in_folder(folder: Path, *, recursive: bool) -> tuple[Sequence[Path], Counter[str], int]:
    """Pictures, other files by kind, and the number of subfolders that are not read."""
    if recursive:
        listing = list_images(folder, SERVED_SUFFIXES)
        return listing.images, listing.left_out, 0
    contents = scan_folder(folder, SERVED_SUFFIXES)
    return [folder / name for name in contents.images], contents.left_out, len(contents.folders)


def pictures_per_request(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """Split files into requests within the limits of `classify`."""
    return chunks(files, [_size(file) for file in files], IMAGES_PER_REQUEST, BYTES_PER_REQUEST)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # its result has the error
        return 0
