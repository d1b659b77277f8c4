"""The `Learner` of phase 2: passes an adapting method the inputs it requires and returns its loss.

Image features of frozen models are cached per fixed view, so methods that train only text prompts run the image tower
once per view.

Legend: B rows, E joint width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from prompted_clip.preprocess import normalize_pixels
from prompted_clip.transfers import to_device
from training.adapting.method import AdaptingMethod, Batch
from training.adapting.reference import ReferenceRecipe
from training.data.view_cache import ViewCache
from training.data.views import Views
from training.hardware import autocast
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe

EVALUATED_ROWS: Final = 32
"""Images per forward of an evaluation: CoCoOp encodes all class texts for each."""


class Adapter:
    """The `Learner` of phase 2.

    Args:
        method: the method to train.
        base_model: the model that the method adapts.
        views: the labelled images.
        labels: class index of each image.
        recipe: all settings of the run.
    """

    def __init__(
        self,
        method: AdaptingMethod,
        base_model: PromptedBackbone,
        views: Views,
        labels: Sequence[int],
        recipe: AdaptRecipe,
    ) -> None:
        self.method = method
        self.base_model = base_model
        self._views = views
        self._device = base_model.backbone.device
        self._labels_N = torch.tensor(labels, dtype=torch.long)
        self._recipe = recipe
        reference = base_model.reference(recipe.reference) if isinstance(recipe, ReferenceRecipe) else base_model
        self._feature_cache = ViewCache(views, lambda pixels: self._features(base_model, pixels))
        self._reference_cache = (
            self._feature_cache
            if reference is base_model
            else ViewCache(views, lambda pixels: self._features(reference, pixels))
        )

    @property
    def n_images(self) -> int:
        """Images per epoch."""
        return len(self._views)

    @property
    def averages_over_images(self) -> bool:
        """The method's value: False for ProGrad, which changes the gradient of the whole batch."""
        return self.method.averages_over_images

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The method's parameter groups."""
        return self.method.parameter_groups()

    def prefetch(self, indices: Tensor, epoch: int) -> None:
        """Start decoding the views of the next step, if the step needs pixels."""
        if "images" in self.method.required_inputs or self._views.view_set(epoch) is None:
            self._views.prefetch(indices.tolist(), epoch)

    def order(self, epoch: int) -> Tensor:
        """Image order of an epoch: a permutation [N] int64."""
        return self._views.order(epoch)

    def loss(self, indices: Tensor, epoch: int) -> Tensor:
        """The method's loss of the images at `indices`, under their views of this epoch."""
        with autocast(self._recipe, self.base_model.backbone):
            return self.method.loss(self.batch(indices, epoch))

    def batch(self, indices: Tensor, epoch: int) -> Batch:
        """The method's required inputs for the images at `indices`."""
        required = self.method.required_inputs
        is_fresh = self._views.view_set(epoch) is None
        pixels = None
        if "images" in required or is_fresh:
            pixels = to_device(self._views.load(indices.tolist(), epoch), self._device)
        features_BE = reference_BE = None
        if "features" in required:
            features_BE = self._feature_cache.get(indices, epoch, pixels)
        if "reference" in required:
            is_same = features_BE is not None and self._reference_cache is self._feature_cache
            reference_BE = features_BE if is_same else self._reference_cache.get(indices, epoch, pixels)
        return Batch(
            labels_B=to_device(self._labels_N[indices], self._device),
            images_BCHW=self._images(pixels) if pixels is not None and "images" in required else None,
            features_BE=features_BE,
            reference_BE=reference_BE,
        )

    def end_epoch(self, epoch: int) -> None:
        """Forward to the method."""
        self.method.end_epoch(epoch)

    def state_dict(self) -> Mapping[str, Any]:
        """The method's state."""
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the method's state."""
        self.method.load_state_dict(state)

    @torch.no_grad()
    def accuracy(self, n_images: int) -> float:
        """Share of the first `n_images` images that the method classifies correctly, with the views of epoch 0."""
        blocks = torch.split(torch.arange(min(n_images, self.n_images)), EVALUATED_ROWS)
        n_correct = 0
        for indices in blocks:
            batch = self.batch(indices, 0)
            n_correct += int((self.method.logits(batch).argmax(1) == batch.labels_B).sum())
        return n_correct / min(n_images, self.n_images)

    @torch.no_grad()
    def zero_shot_accuracy(self, text_features_KE: Tensor) -> float:
        """Share of all images that the base model classifies correctly with these text features."""
        n_correct = 0
        for indices in torch.split(torch.arange(self.n_images), EVALUATED_ROWS):
            scores_BK = self._feature_cache.get(indices, 0) @ text_features_KE.T
            n_correct += int((scores_BK.argmax(1).cpu() == self._labels_N[indices]).sum())
        return n_correct / self.n_images

    def _images(self, pixels_BCHW: Tensor) -> Tensor:
        return normalize_pixels(to_device(pixels_BCHW, self._device), self.base_model.backbone.preprocess)

    def _features(self, model: PromptedBackbone, pixels_BCHW: Tensor) -> Tensor:
        with autocast(self._recipe, self.base_model.backbone):
            return model.encode_images(self._images(pixels_BCHW))
