"""What a stack answers for the images of a data set, by the path that serving takes: same model, same pixels.

Knows the model and how images are read. Does not know protocols, seeds or how the stack came to be.

Legend: B rows, C/H/W image, N images, E joint width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_store.manifest import MAX_CLASSES
from prompted_clip.backbone import Backbone
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack
from training.data.dataset import Dataset, LabelledImage, Split
from training.data.readable import drop_unreadable
from training.data.views import Views
from training.errors import OutOfMemoryError

BATCH_ROWS: Final = 64
MAX_KEPT_SPLITS: Final = 2
"""Splits whose pixels stay in memory: a base and a new half, which every method and seed looks at."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """One split under one stack, in the order of its readable images.

    Attributes:
        labels_N: true classes, int64.
        named_N: most probable classes, int64.
        features_NE: image features, float32, unit norm.
        unreadable: images that were left out because they do not decode.
    """

    labels_N: NDArray[np.int64]
    named_N: NDArray[np.int64]
    features_NE: NDArray[np.float32]
    unreadable: tuple[Path, ...]


class Predictor:
    """Runs labelled images through one backbone.

    Args:
        backbone: the frozen CLIP.
        batch_rows: images per forward.
    """

    def __init__(self, backbone: Backbone, *, batch_rows: int = BATCH_ROWS) -> None:
        # The limit on conditional heads protects a service's latency; a measurement may take its time.
        self.model = PromptedClip(backbone, max_conditional_classes=MAX_CLASSES)
        self._batch_rows = batch_rows
        self._readable: dict[tuple[LabelledImage, ...], Dataset] = {}
        self._views: dict[tuple[LabelledImage, ...], Views] = {}

    @torch.inference_mode()
    def predict(
        self,
        stack: PromptStack,
        dataset: Dataset,
        split: Split = "test",
        *,
        on_check: Callable[[int, int], None] | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Predictions:
        """Answer for every image of a split; images are decoded once to see whether they can be.

        Args:
            stack: whose prompts and classes; labels are positions among its classes.
            dataset: what to look at.
            split: which part of it.
            on_check: called with the number of images checked and in all, the first time a split is seen.
            on_progress: called with the number of images just answered.

        Raises:
            DatasetError: the split has no image that can be read.
            OutOfMemoryError: the device has no room for a single image.
        """
        key = dataset.split(split)
        if key not in self._readable:
            self._readable[key] = drop_unreadable(dataset, (split,), on_progress=on_check)
        images = self._readable[key].split(split)
        views = self._views_of(images)
        named: list[int] = []
        features = []
        for start in range(0, len(images), self._batch_rows):
            rows = range(start, min(start + self._batch_rows, len(images)))
            for part_B, part_BE in self._answer(stack, views.load(rows, 0)):
                named += part_B.tolist()
                features.append(part_BE.float().cpu())
            on_progress(len(rows))
        kept = frozenset(images)
        return Predictions(
            labels_N=np.array([image.label for image in images], dtype=np.int64),
            named_N=np.array(named, dtype=np.int64),
            features_NE=torch.cat(features).numpy(),
            unreadable=tuple(image.path for image in key if image not in kept),
        )

    def _answer(self, stack: PromptStack, pixels_BCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Named classes [B] and unit features [B, E], in one part or, where memory is short, in several."""
        stacks = [stack] * len(pixels_BCHW)
        try:
            seen = self.model.encode_images(pixels_BCHW, stacks)
            return [(torch.stack(self.model.score(seen, stacks)).argmax(dim=1), seen.unit_BE)]
        except torch.OutOfMemoryError as error:
            if len(stacks) == 1:
                msg = f"The device has no memory for a single image under {stack.domain!r}; free some, or use the CPU."
                raise OutOfMemoryError(msg) from error
        # Outside the handler: its traceback would keep the failed batch's tensors alive.
        halves = pixels_BCHW.tensor_split(2)
        return [part for half in halves for part in self._answer(stack, half)]

    def _views_of(self, images: tuple[LabelledImage, ...]) -> Views:
        """The images as served, decoded once for as long as their split is among the last ones asked for."""
        backbone = self.model.backbone
        views = self._views.pop(images, None) or Views(
            [image.path for image in images],
            image_size=backbone.image_size,
            preprocess=backbone.preprocess,
            augmentation="none",
            crop_scale_min=1.0,
            seed=0,
        )
        self._views[images] = views
        if len(self._views) > MAX_KEPT_SPLITS:
            del self._views[next(iter(self._views))]
        return views
