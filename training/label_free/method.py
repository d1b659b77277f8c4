"""The interface of label-free methods, and pseudo-labels.

Every method gets the same input: unlabelled images, class names, and the base model's predictions for the images. It
returns tensors for a bundle.

Legend: U images, N pseudo-labelled images, K classes, E joint width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from training.adapting.method import AdaptingMethod, ExportedPrompts
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Images with predicted classes.

    Attributes:
        rows_N: indices into the unlabelled images, int64, ascending by class, then by image.
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
    """Trains a method on pseudo-labelled images, with progress and checkpoints."""

    def __call__(
        self,
        method: AdaptingMethod,
        found: PseudoLabels,
        recipe: AdaptRecipe,
        *,
        part: int = 0,
        weak_features_NE: Tensor | None = None,
    ) -> None:
        """Train `method` in place.

        Args:
            method: the method.
            found: images and classes to train on.
            recipe: schedule and views.
            part: number of this training, if a run has several.
            weak_features_NE: for methods that require `weak`, features of the images as in serving.
        """


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
    """

    base_model: PromptedBackbone
    class_names: Sequence[str]
    encoded: Encoded
    train: Train


@dataclass(frozen=True, eq=False)
class Learned:
    """The result of a label-free method.

    Attributes:
        exported: tensors for the bundle.
        template: text after the prompts, with one `{}`.
        metrics: numbers for the report and the provenance.
    """

    exported: ExportedPrompts
    template: str
    metrics: Mapping[str, Any] = field(default_factory=dict)


Learn = Callable[[Unlabelled, Any], Learned]
"""A label-free method: from unlabelled images and its recipe to a bundle's tensors."""


def most_confident(probabilities_UK: Tensor, n_per_class: int) -> PseudoLabels:
    """The most probable class of each image, for the `n_per_class` most confident images of each class.

    y_i = argmax_c p(c | x_i); of the images with y_i = c, those with the highest p(c | x_i). A class that is the most
    probable one of fewer images has fewer.
    Source: UPL (arXiv 2204.03649), pseudo-label generation: top-K per class instead of a threshold, as CLIP is more
    confident for some classes than for others.
    """
    confidence_U, label_U = probabilities_UK.max(dim=1)
    return _first_of_each_class(confidence_U, label_U, torch.arange(len(label_U)), n_per_class)


def most_similar(probabilities_UK: Tensor, n_per_class: int) -> PseudoLabels:
    """For each class, the `n_per_class` images with the highest p(c | x), even if another class is more probable.

    An image that is among those of several classes keeps the most probable of them. Every class has pseudo-labels
    unless other classes have all of its images.
    Source: ENCLIP (arXiv 2306.01669), section 3: the same number of pseudo-labels for every class. The paper does not
    say what to do with images of several classes; inferred.
    """
    best = probabilities_UK.argsort(dim=0, descending=True, stable=True)[:n_per_class]
    is_chosen_UK = torch.zeros_like(probabilities_UK, dtype=torch.bool).scatter_(0, best, value=True)
    confidence_U, label_U = probabilities_UK.masked_fill(~is_chosen_UK, -1).max(dim=1)
    rows = torch.arange(len(confidence_U))[confidence_U >= 0]
    return _first_of_each_class(confidence_U[rows], label_U[rows], rows, n_per_class)


def _first_of_each_class(confidence_N: Tensor, label_N: Tensor, rows_N: Tensor, n_per_class: int) -> PseudoLabels:
    order = confidence_N.argsort(descending=True, stable=True)
    labels = sorted(set(label_N.tolist()))
    chosen = torch.cat([order[label_N[order] == label][:n_per_class].sort().values for label in labels])
    return PseudoLabels(rows_N[chosen], label_N[chosen])
