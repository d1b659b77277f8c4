"""Image files below a folder: the readable ones, the damaged ones, and a digest over their contents.

Also how image files are read in bulk, here and for labelled data sets: on how many threads, and what counts as damaged.
Does not know labels or pixels' values.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from PIL import Image

from training.data.listing import SUFFIXES, list_images
from training.errors import NoImagesError

_MAX_THREADS: Final = 8  # more only wait for each other and for the disk
_CHUNK: Final = 64  # files between two reports of progress, and at most so many to wait for after Ctrl-C

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class ImageFolder:
    """The readable images of a folder.

    Attributes:
        root: the folder searched, subfolders included.
        files: readable images, sorted by path.
        unreadable: files with an image's suffix that could not be decoded.
        digest: `sha256:…` over relative paths and contents of `files`.
    """

    root: Path
    files: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    digest: str


def find_images(root: Path, on_progress: Callable[[int, int], None] | None = None) -> ImageFolder:
    """List the images below a folder; damaged ones are set aside and named, never fatal. Hidden ones are not seen.

    Args:
        root: the folder.
        on_progress: called from this thread with the number of files read and in all.

    Raises:
        NoImagesError: the folder does not exist or holds no readable image.
    """
    if not root.is_dir():
        msg = f"Expected a folder of images at {root}; there is none."
        raise NoImagesError(msg)
    candidates = sorted(list_images(root))
    hashes = read_in_threads(_hash_readable, candidates, on_progress)
    files = tuple(path for path, found in zip(candidates, hashes, strict=True) if found)
    unreadable = tuple(path for path, found in zip(candidates, hashes, strict=True) if not found)
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES))
        msg = f"No readable image below {root}: expected {suffixes}, found {len(unreadable)} damaged and no sound ones."
        raise NoImagesError(msg)
    digest = hashlib.sha256()
    for path, found in zip(candidates, hashes, strict=True):
        if found:
            # surrogateescape: a file name need not be text, and must not stop the digest
            line = f"{path.relative_to(root).as_posix()}\0{found}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return ImageFolder(root, files, unreadable, f"sha256:{digest.hexdigest()}")


def read_in_threads(
    read: Callable[[Path], _Found], paths: Sequence[Path], on_progress: Callable[[int, int], None] | None = None
) -> list[_Found]:
    """Apply `read` to every path, several at a time; results are in the order of the paths.

    Args:
        read: called from many threads; what it raises is raised here.
        paths: files.
        on_progress: called from this thread with the number of files done and in all.
    """
    results: list[_Found] = []
    with ThreadPoolExecutor(n_decoding_threads()) as pool:
        for start in range(0, len(paths), _CHUNK):
            results += pool.map(read, paths[start : start + _CHUNK])
            if on_progress is not None:
                on_progress(len(results), len(paths))
    return results


def n_decoding_threads() -> int:
    """Threads that decode at the same time: one per CPU that this process may use, 8 at most."""
    # The affinity, where there is one: a job on a shared machine may use fewer CPUs than it has.
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_THREADS, n_cpus)


def decodes(source: Path | io.BytesIO) -> bool:
    """Whether a file is a whole image; opening alone would miss a cut one."""
    try:
        with Image.open(source) as image:
            image.load()
    except Exception:  # noqa: BLE001  Pillow's parsers raise a dozen kinds of errors for damaged files
        return False
    return True


def _hash_readable(path: Path) -> str | None:
    """SHA-256 of a file that decodes as an image, else None."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return hashlib.sha256(data).hexdigest() if decodes(io.BytesIO(data)) else None
