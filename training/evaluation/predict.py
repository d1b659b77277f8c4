"""Predictions of a prompt stack for the images of a data set, with the same model and preprocessing as the service.

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
MAX_CACHED_SPLITS: Final = 2
"""Splits whose pixels stay in memory: the base and new halves, which all methods and seeds use."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one stack for one split, in the order of its readable images.

    Attributes:
        labels_N: true classes, int64.
        named_N: predicted classes, int64.
        features_NE: image features, float32, unit norm.
        unreadable: images that cannot be decoded.
    """

    labels_N: NDArray[np.int64]
    named_N: NDArray[np.int64]
    features_NE: NDArray[np.float32]
    unreadable: tuple[Path, ...]


class Predictor:
    """Classifies labelled images with one backbone.

    Args:
        backbone: the frozen CLIP.
        batch_rows: images per forward.
    """

    def __init__(self, backbone: Backbone, *, batch_rows: int = BATCH_ROWS) -> None:
        # The limit on conditional heads protects the service's latency; it does not apply here.
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
        """Classify every readable image of a split.

        Args:
            stack: prompts and classes; labels are indices into its classes.
            dataset: the data set.
            split: the split to classify.
            on_check: called with the number of images checked and the total, the first time a split is used.
            on_progress: called with the number of images just classified.

        Raises:
            DatasetError: the split has no readable images.
            OutOfMemoryError: the device has not enough memory for a single image.
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
            for part_B, part_BE in self._classify(stack, views.load(rows, 0)):
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

    def _classify(self, stack: PromptStack, pixels_BCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predicted classes [B] and unit features [B, E]; the batch is split if the device runs out of memory."""
        stacks = [stack] * len(pixels_BCHW)
        try:
            encoded = self.model.encode_images(pixels_BCHW, stacks)
            return [(torch.stack(self.model.score(encoded, stacks)).argmax(dim=1), encoded.unit_BE)]
        except torch.OutOfMemoryError as error:
            if len(stacks) == 1:
                msg = f"Out of device memory for a single image of {stack.domain!r}. Free memory or use the CPU."
                raise OutOfMemoryError(msg) from error
        # Outside the except block, whose traceback keeps the failed batch's tensors alive.
        halves = pixels_BCHW.tensor_split(2)
        return [part for half in halves for part in self._classify(stack, half)]

    def _views_of(self, images: tuple[LabelledImage, ...]) -> Views:
        """The preprocessed images of a split; recently used splits are cached."""
        backbone = self.model.backbone
        views = self._views.pop(images, None) or Views.as_served(
            [image.path for image in images], backbone.image_size, backbone.preprocess
        )
        self._views[images] = views
        if len(self._views) > MAX_CACHED_SPLITS:
            del self._views[next(iter(self._views))]
        return views
