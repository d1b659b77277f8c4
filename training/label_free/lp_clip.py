"""LP-CLIP: a linear layer on frozen image features, trained to predict CLIP's own classes from strong views.

    y_i = argmax_c p(c | x_i)                                       the unchanged image, from CLIP or a larger one
    L   = CE( s (w_c · f(A(x_i)) + b_c), y_i )                      A: a strong view

Source: LP-CLIP (arXiv 2309.10361): a linear probing layer distilled from CLIP's pseudo-labels, with the consistency of
weak and strong views. Inferred: w starts at the text features and b at 0, so that training starts at the zero-shot
classifier; images with a lower probability than `threshold` are left out, as in FixMatch (arXiv 2001.07685, eq. 4).

The layer replaces the text features for the bundle's own classes. Legend: B rows, K classes, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.adapting.method import Batch, ExportedPrompts, Input, LinearHead, detached, required_input
from training.adapting.reference import TemplateRecipe
from training.errors import RecipeError
from training.label_free.method import Learned, PseudoLabels, Unlabelled
from training.loop import ParameterGroup


class LPCLIPRecipe(TemplateRecipe):
    """A linear layer; all values are inferred."""

    learning_rate: float = Field(default=0.002, gt=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    augmentation: Literal["crop-flip", "strong", "none"] = Field(
        default="strong", description="views that the layer is trained on"
    )
    crop_scale_min: float = Field(default=0.5, gt=0, le=1, description="minimum area of a random crop, as a fraction")
    fixed_views: int = Field(default=4, ge=0, description="views per image, cycled through by epoch; 0: new ones")
    threshold: float = Field(default=0.0, ge=0, lt=1, description="least probability of a pseudo-label")


class LinearProbe(nn.Module):
    """Class scores s (w · f + b); the parameters are `weight` [K, E] and `bias` [K].

    Args:
        text_KE: the initial weight.
        scale: s, frozen.
        template: text of labels other than the bundle's own classes.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"features"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, text_KE: Tensor, scale: float, template: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(text_KE.clone())
        self.bias = nn.Parameter(torch.zeros_like(text_KE[:, 0]))
        self.scale, self.template = scale, template

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Weight and bias, at the recipe's rate."""
        return [ParameterGroup([self.weight, self.bias])]

    def logits(self, batch: Batch) -> Tensor:
        """Class scores [B, K]."""
        features_BE = required_input(batch.features_BE, "features")
        return self.scale * nn.functional.linear(features_BE, self.weight, self.bias)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy with the pseudo-labels, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """A linear head on unit features instead of the text features."""
        weight_KE, bias_K = detached(self.scale * self.weight), detached(self.scale * self.bias)
        return ExportedPrompts(head=LinearHead(weight_KE, bias_K, share=1.0, reads_unit=True))


def learn_lp_clip(unlabelled: Unlabelled, recipe: LPCLIPRecipe) -> Learned:
    """Train the layer on all images with a confident pseudo-label.

    Raises:
        RecipeError: no image reaches the threshold.
    """
    encoded, base_model = unlabelled.encoded, unlabelled.base_model
    confidence_U, label_U = encoded.probabilities().max(dim=1)
    rows_N = torch.arange(len(label_U))[confidence_U >= recipe.threshold]
    if not len(rows_N):
        msg = (
            f"No image has a class with probability {recipe.threshold:g} (threshold); the highest is "
            f"{confidence_U.max():.3g}. Lower it."
        )
        raise RecipeError(msg)
    found = PseudoLabels(rows_N, label_U[rows_N])
    method = LinearProbe(encoded.text_KE.to(base_model.backbone.device), base_model.logit_scale, encoded.template)
    trained = unlabelled.train(method, found, recipe)
    return Learned(method.fold(), encoded.template, found.metrics(len(unlabelled.class_names)), trained)
