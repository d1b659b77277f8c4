"""Views of training images: preprocessed as in the service, or with reproducible random augmentation.

Every random choice depends on (seed, epoch, image) only, so the pixels are the same after a resume and with any number
of threads.
"""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import to_pixels, upright_rgb, without_metadata
from training.data.images import n_decoding_threads
from training.data.strong_views import strong_view
from training.recipe import Recipe

MAX_PREFETCHED: Final = 2
MAX_CACHED_BYTES: Final = 2 * 1024**3
"""Memory limit for cached views; larger sets are decoded every time, with the same pixels."""


class Views:
    """Views of a list of images, shared by student and teacher.

    Args:
        files: image files.
        image_size: side of a view in pixels.
        preprocess: the backbone's preprocessing values.
        augmentation: `none`, `crop-flip`, or `strong` (see `strong_views`).
        crop_scale_min: minimum area of a random crop, as a fraction.
        seed: seed of all random choices.
        n_fixed: number of random views per image that epochs cycle through; 0 for new views every epoch.
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
        n_fixed: int = 0,
    ) -> None:
        self._files = files
        self._image_size = image_size
        self._preprocess = preprocess
        self._is_random, self._is_strong = augmentation != "none", augmentation == "strong"
        self._crop_scale_min = crop_scale_min
        self._seed = seed
        self._n_fixed = n_fixed
        self._pixels: dict[int, Tensor] = {}
        self._prefetched: dict[tuple[tuple[int, ...], int], list[Future[NDArray[np.uint8]]]] = {}
        self._pool = ThreadPoolExecutor(n_decoding_threads())

    @classmethod
    def as_served(cls, files: Sequence[Path], image_size: int, preprocess: dict[str, Any]) -> "Views":
        """One view per image, preprocessed as in the service."""
        return cls(files, image_size=image_size, preprocess=preprocess, augmentation="none", crop_scale_min=1.0, seed=0)

    @classmethod
    def for_training(cls, files: Sequence[Path], backbone: Backbone, recipe: Recipe) -> "Views":
        """Views for a backbone, augmented as in a recipe."""
        return cls(
            files,
            image_size=backbone.image_size,
            preprocess=backbone.preprocess,
            augmentation=recipe.augmentation,
            crop_scale_min=recipe.crop_scale_min,
            seed=recipe.seed,
            n_fixed=recipe.fixed_views,
        )

    def view_set(self, epoch: int) -> int | None:
        """Index of the fixed set of views that an epoch uses, None if its views are new."""
        if not self._is_random:
            return 0
        return epoch % self._n_fixed if self._n_fixed else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def order(self, epoch: int) -> Tensor:
        """Shuffled image indices of an epoch: int64 [N]."""
        generator = torch.Generator().manual_seed(_derive_seed(self._seed, epoch, 0))
        return torch.randperm(len(self._files), generator=generator)

    def prefetch(self, indices: Sequence[int], epoch: int) -> None:
        """Start decoding the next batch in the background, unless its views are cached."""
        which = self.view_set(epoch)
        if which is not None and self._fits_in_memory():
            return
        source = epoch if which is None else which
        if len(self._prefetched) >= MAX_PREFETCHED:  # never loaded
            self._prefetched.pop(next(iter(self._prefetched)))
        self._prefetched[tuple(indices), epoch] = [self._pool.submit(self._view, index, source) for index in indices]

    def load(self, indices: Sequence[int], epoch: int) -> Tensor:
        """Load the views at `indices`: uint8 [B, 3, H, W]; fixed views are cached if they fit in memory."""
        which = self.view_set(epoch)
        if views := self._prefetched.pop((tuple(indices), epoch), None):
            return torch.from_numpy(np.stack([view.result() for view in views]))
        if which is None:
            return self._read(indices, epoch)
        if not self._fits_in_memory():
            return self._read(indices, which)
        if which not in self._pixels:
            self._pixels[which] = self._read(range(len(self)), which)
        return self._pixels[which][torch.as_tensor(indices)]

    def _fits_in_memory(self) -> bool:
        n_bytes = len(self) * 3 * self._image_size**2 * max(1, self._n_fixed)
        return n_bytes <= MAX_CACHED_BYTES

    def _read(self, indices: Sequence[int], epoch: int) -> Tensor:
        return torch.from_numpy(np.stack(list(self._pool.map(lambda index: self._view(index, epoch), indices))))

    def _view(self, index: int, epoch: int) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(without_metadata(self._files[index].read_bytes()))) as opened:
            image = upright_rgb(opened)
        if self._is_random:
            rng = np.random.default_rng(_derive_seed(self._seed, epoch, index + 1))
            image = _random_crop(image, self._image_size, self._crop_scale_min, rng)
            image = strong_view(image, rng) if self._is_strong else image
        return to_pixels(image, self._image_size, self._preprocess)


def _random_crop(image: Image.Image, size: int, scale_min: float, rng: np.random.Generator) -> Image.Image:
    """Random resized crop (area `scale_min`…1, aspect ratio 3/4…4/3, bicubic) with a random horizontal flip."""
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


def _derive_seed(seed: int, epoch: int, index: int) -> int:
    """Hash three numbers to a 63-bit seed."""
    packed = f"{seed}/{epoch}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big") >> 1
