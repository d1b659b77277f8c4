"""The interface of label-free methods, and pseudo-labels.

Every method gets the same input: unlabelled images, class names, and the base model's predictions for the images. It
returns tensors for a bundle.

Legend: U images, N pseudo-labelled images, K classes, E joint width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from training.adapting.method import AdaptingMethod, ExportedPrompts
from training.loop import TrainState
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Images with predicted classes.

    Attributes:
        rows_N: indices into the unlabelled images, int64.
        labels_N: predicted classes, int64.
    """

    rows_N: Tensor
    labels_N: Tensor

    def metrics(self, n_classes: int) -> dict[str, int]:
        """Numbers of pseudo-labels and of classes without any, for the report."""
        return {
            "n_pseudo_labels": len(self.rows_N),
            "n_classes_without_pseudo_labels": n_classes - len(set(self.labels_N.tolist())),
        }


class Train(Protocol):
    """Trains a method in place on pseudo-labelled images, with a recipe's schedule and views, and progress."""

    def __call__(
        self, method: AdaptingMethod, found: PseudoLabels, recipe: AdaptRecipe, *, iteration: tuple[int, int] = (1, 1)
    ) -> TrainState:
        """Train, or resume from this iteration's checkpoint.

        Args:
            method: the method, in its initial state.
            found: images with predicted classes.
            recipe: optimizer, schedule and views.
            iteration: number of this training, from 1, and number of trainings of the run; each has its checkpoint.
        """


Score = Callable[[AdaptingMethod], Tensor]
"""Class scores z of all images by a method, preprocessed as in serving: float32 [U, K], on the CPU; no gradient."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the frozen models compute from unlabelled images and class names.

    Attributes:
        features_UE: f(x) of the base model, preprocessed as in serving: float32, unit norm, on the CPU.
        text_KE: g of the base model: float32, unit norm, on the CPU.
        scores_UK: class scores z that pseudo-labels are made from: the base model's, or a teacher's.
        template: text of the classes, with one `{}`.
    """

    features_UE: Tensor
    text_KE: Tensor
    scores_UK: Tensor
    template: str

    def probabilities(self) -> Tensor:
        """p(c | x) of the model that predicts the pseudo-labels: float64 [U, K]."""
        return self.scores_UK.double().softmax(dim=1)


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """The input of a label-free method.

    Attributes:
        base_model: the frozen CLIP, boosted or plain.
        class_names: K names.
        encoded: features and scores of the images.
        train: trains a method on pseudo-labels.
        score: scores all images with a method.
    """

    base_model: PromptedBackbone
    class_names: Sequence[str]
    encoded: Encoded
    train: Train
    score: Score


@dataclass(frozen=True, eq=False)
class Learned:
    """The result of a label-free method.

    Attributes:
        exported: tensors for the bundle.
        template: text after the prompts, with one `{}`.
        metrics: numbers for the report and the provenance.
        trained: the finished training, or None for a closed form.
    """

    exported: ExportedPrompts
    template: str
    metrics: Mapping[str, Any]
    trained: TrainState | None = None


Learn = Callable[[Unlabelled, Any], Learned]
"""A label-free method: from unlabelled images and its recipe to a bundle's tensors."""


def most_confident(probabilities_UK: Tensor, n_per_class: int) -> PseudoLabels:
    """The most probable class of each image, for the `n_per_class` most confident images of each class.

    y_i = argmax_c p(c | x_i); of the images with y_i = c, those with the highest p(c | x_i). A class that is the most
    probable one of fewer images has fewer. The result is sorted by class, then by image.
    Source: UPL (arXiv 2204.03649), pseudo-label generation: top-K per class instead of a threshold, as CLIP is more
    confident for some classes than for others.
    """
    confidence_U, label_U = probabilities_UK.max(dim=1)
    order = confidence_U.argsort(descending=True, stable=True)
    labels = sorted(set(label_U.tolist()))
    rows_N = torch.cat([order[label_U[order] == label][:n_per_class].sort().values for label in labels])
    return PseudoLabels(rows_N, label_U[rows_N])
