"""Unlabelled image folders, and reading image files in parallel."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from PIL import Image

from prompted_clip.preprocess import without_metadata
from training.data.listing import SUFFIXES, describe_left_out, list_images
from training.data.split_names import split_of
from training.errors import NoImagesError

_MAX_THREADS: Final = 8  # more threads only contend for the disk
_CHUNK: Final = 64  # files between progress reports, and the most to wait for after Ctrl-C

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class ImageFolder:
    """The readable images of a folder.

    Attributes:
        root: the folder, searched recursively.
        files: readable images, sorted by path.
        unreadable: image files that cannot be decoded.
        digest: `sha256:…` over relative paths and contents of `files`.
        notes: lines for the user: files that are not read, and split folders.
    """

    root: Path
    files: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    digest: str
    notes: tuple[str, ...] = field(default=(), compare=False)


def find_images(root: Path, on_progress: Callable[[int, int], None] | None = None) -> ImageFolder:
    """Find the images in a folder, recursively; damaged files are listed in `unreadable`, `notes` counts other files.

    Args:
        root: the folder.
        on_progress: called from this thread with the number of files read and the total.

    Raises:
        NoImagesError: the folder does not exist or has no readable images.
    """
    if not root.is_dir():
        msg = f"No such folder: {root}."
        raise NoImagesError(msg)
    listing = list_images(root)
    candidates, not_read = sorted(listing.images), describe_left_out(listing.left_out)
    hashes = read_in_threads(hash_readable, candidates, on_progress)
    files = tuple(path for path, found in zip(candidates, hashes, strict=True) if found)
    unreadable = tuple(path for path, found in zip(candidates, hashes, strict=True) if not found)
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES))
        msg = f"No readable images ({suffixes}) in {root}; {len(unreadable)} are damaged."
        msg += f" {not_read}." if not_read else ""
        raise NoImagesError(msg)
    digest = hashlib.sha256()
    for path, found in zip(candidates, hashes, strict=True):
        if found:
            # surrogateescape: file names need not be valid UTF-8
            line = f"{path.relative_to(root).as_posix()}\0{found}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    notes = tuple(filter(None, [_describe_splits(root, files), not_read]))
    return ImageFolder(root, files, unreadable, f"sha256:{digest.hexdigest()}", notes)


def _describe_splits(root: Path, files: Sequence[Path]) -> str:
    """A line that names the split folders in `root`, if there are several, because all are used for training."""
    folders = sorted({path.relative_to(root).parts[0] for path in files if path.parent != root})
    splits = [name for name in folders if split_of(name)]
    return f"images of the split folders {', '.join(splits)} are all used" if len(splits) > 1 else ""


def read_in_threads(
    read: Callable[[Path], _Found], paths: Sequence[Path], on_progress: Callable[[int, int], None] | None = None
) -> list[_Found]:
    """Apply `read` to every path in a thread pool; results are in the order of the paths.

    Args:
        read: called from several threads; its exceptions are re-raised.
        paths: files.
        on_progress: called from this thread with the number of files done and the total.
    """
    results: list[_Found] = []
    with ThreadPoolExecutor(n_decoding_threads()) as pool:
        for start in range(0, len(paths), _CHUNK):
            results += pool.map(read, paths[start : start + _CHUNK])
            if on_progress is not None:
                on_progress(len(results), len(paths))
    return results


def n_decoding_threads() -> int:
    """Number of decoding threads: one per available CPU, at most 8."""
    # CPU affinity if supported: a job on a shared machine may be limited to fewer CPUs.
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_THREADS, n_cpus)


def is_decodable(source: Path | bytes) -> bool:
    """Whether a file decodes completely to 8-bit RGB; opening alone does not detect truncation.

    TIFFs with several pages, or with floating-point or 32-bit pixels, have no one conversion and do not count.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(without_metadata(data))) as image:
            if image.format == "TIFF" and (getattr(image, "n_frames", 1) > 1 or image.mode in {"F", "I"}):
                return False
            image.load()
    except Exception:  # noqa: BLE001  Pillow raises many exception types for damaged files
        return False
    return True


def hash_readable(path: Path) -> str | None:
    """SHA-256 of a decodable image file, else None."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return hashlib.sha256(data).hexdigest() if is_decodable(data) else None
