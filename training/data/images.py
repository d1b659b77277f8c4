"""Image files below a folder: the readable ones, the damaged ones, and a digest over their contents."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from training.errors import NoImagesError

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
N_THREADS: Final = 4


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


def find_images(root: Path) -> ImageFolder:
    """List the images below a folder; damaged ones are set aside and named, never fatal.

    Raises:
        NoImagesError: the folder does not exist or holds no readable image.
    """
    if not root.is_dir():
        msg = f"Expected a folder of images at {root}; there is none."
        raise NoImagesError(msg)
    candidates = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    with ThreadPoolExecutor(N_THREADS) as pool:
        hashes = list(pool.map(_hash_readable, candidates))
    files = tuple(path for path, found in zip(candidates, hashes, strict=True) if found)
    unreadable = tuple(path for path, found in zip(candidates, hashes, strict=True) if not found)
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES))
        msg = f"No readable image below {root}: expected {suffixes}, found {len(unreadable)} damaged and no sound ones."
        raise NoImagesError(msg)
    digest = hashlib.sha256()
    for path, found in zip(candidates, hashes, strict=True):
        if found:
            digest.update(f"{path.relative_to(root).as_posix()}\0{found}\n".encode())
    return ImageFolder(root, files, unreadable, f"sha256:{digest.hexdigest()}")


def _hash_readable(path: Path) -> str | None:
    """SHA-256 of a file that decodes as an image, else None."""
    try:
        data = path.read_bytes()
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return hashlib.sha256(data).hexdigest()
