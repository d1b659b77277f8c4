"""Unlabelled images of one domain: found in a folder, decoded, and seen under reproducible random views.

Every random choice is drawn from (seed, epoch, image), never from a shared stream, so a resumed run and a run with
another number of threads see the same pixels.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from prompted_clip.preprocess import to_pixels
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


class Views:
    """What both models see of each image: as served, or under a random crop and flip.

    Args:
        files: images to read.
        image_size: side of a view in pixels.
        preprocess: the backbone's preprocessing values.
        augmentation: `none` or `crop-flip`.
        crop_scale_min: least area of a random crop, as a fraction.
        seed: of all random choices.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        image_size: int,
        preprocess: dict[str, Any],
        augmentation: str,
        crop_scale_min: float,
        seed: int,
    ) -> None:
        self._files = files
        self._image_size = image_size
        self._preprocess = preprocess
        self._is_random = augmentation != "none"
        self._crop_scale_min = crop_scale_min
        self._seed = seed
        self._pool = ThreadPoolExecutor(N_THREADS)

    @property
    def is_random(self) -> bool:
        """Whether an image looks different in every epoch."""
        return self._is_random

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def order(self, epoch: int) -> Tensor:
        """The order of images in an epoch: a permutation [N] int64."""
        generator = torch.Generator().manual_seed(_mix(self._seed, epoch, 0))
        return torch.randperm(len(self._files), generator=generator)

    def load(self, indices: Sequence[int], epoch: int) -> Tensor:
        """Views of the images at `indices`: uint8 [B, 3, H, W]."""
        return torch.from_numpy(np.stack(list(self._pool.map(lambda index: self._view(index, epoch), indices))))

    def _view(self, index: int, epoch: int) -> NDArray[np.uint8]:
        with Image.open(self._files[index]) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        if self._is_random:
            rng = np.random.default_rng(_mix(self._seed, epoch, index + 1))
            image = _random_crop(image, self._image_size, self._crop_scale_min, rng)
        return to_pixels(image, self._image_size, self._preprocess)


def _random_crop(image: Image.Image, size: int, scale_min: float, rng: np.random.Generator) -> Image.Image:
    """A random resized crop (area `scale_min`…1, aspect 3/4…4/3, bicubic), flipped half of the time."""
    width, height = image.size
    area = width * height * rng.uniform(scale_min, 1.0)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    crop_w = min(width, max(1, round(float(np.sqrt(area * aspect)))))
    crop_h = min(height, max(1, round(float(np.sqrt(area / aspect)))))
    left = int(rng.integers(0, width - crop_w + 1))
    top = int(rng.integers(0, height - crop_h + 1))
    box = (left, top, left + crop_w, top + crop_h)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(view) if rng.random() < 0.5 else view


def _hash_readable(path: Path) -> str | None:
    """SHA-256 of a file that decodes as an image, else None."""
    try:
        data = path.read_bytes()
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return hashlib.sha256(data).hexdigest()


def _mix(seed: int, epoch: int, index: int) -> int:
    """One 63-bit seed from three numbers."""
    packed = f"{seed}/{epoch}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big") >> 1
