"""DePT: a host method learns prompts, and a linear head on scaled channels learns the base classes.

Source: DePT (arXiv 2309.07439), section 3, and its repository. v and t_c are the host's unnormalised image and text
embeddings, z its scores, FiLM(v) = gamma ⊙ v + beta with separate gamma, beta for images and texts, and W, b the head:

    L      = (1 - λ) · CE(z, y) + λ · CE(W [FiLM(t_y); FiLM(v)] + b, [y; y])
    logits = (1 - λ) · z + λ · (W FiLM(v) + b)      for the training classes;  z for any others

[·; ·] concatenates along the batch: the head gets two rows per image, the image's and its class's text.

Legend: B rows, K classes, E joint width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from prompted_clip.internals import unit_norm
from training.adapting.method import AdaptingMethod, Batch, ExportedPrompts, Input, LinearHead, detached
from training.initial_prompts import seeded_linear
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.scores import class_scores


class DePTRecipe(AdaptRecipe):
    """The repository's values; the host has its own recipe."""

    learning_rate: float = Field(default=0.0035, gt=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=4, ge=1)
    host: Literal["coop", "ivlp", "maple"] = Field(
        default="maple",
        description="the method that learns the prompts: coop and maple are in the paper, ivlp is our addition",
    )
    head_share: float = Field(default=0.7, ge=0, le=1, description="λ, weight of the head in loss and scores")
    head_rate_factor: float = Field(default=6.5, gt=0, description="learning-rate multiplier of FiLM and head")
    host_values: dict[str, Any] = Field(default_factory=dict, description="recipe values of the host")


class DePTHost(AdaptingMethod, Protocol):
    """A method that DePT can build on: it exposes embeddings, and its loss is cross-entropy."""

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unnormalised image embeddings [B, E] and text embeddings [K, E], with the host's prompts.

        The batch always contains `images`, whatever the host's `required_inputs`.
        """


class DePT(nn.Module):
    """A host method, FiLM's gamma (scale) and beta (shift) [E] for images and texts, and the head.

    Args:
        base_model: the frozen CLIP that the host adapts.
        class_names: the host's K class names.
        recipe: λ, the head's learning-rate multiplier and seed.
        host: the method that learns prompts.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images"})
    averages_over_images: ClassVar[bool] = True

    def __init__(
        self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: DePTRecipe, host: DePTHost
    ) -> None:
        super().__init__()
        self.base_model = base_model
        self.recipe = recipe
        self.host = host
        width, device = base_model.backbone.embed_dim, base_model.backbone.device
        self.image_scale = nn.Parameter(torch.ones(width, device=device))
        self.image_shift = nn.Parameter(torch.zeros(width, device=device))
        self.text_scale = nn.Parameter(torch.ones(width, device=device))
        self.text_shift = nn.Parameter(torch.zeros(width, device=device))
        self.head = seeded_linear(width, len(class_names), torch.Generator().manual_seed(recipe.seed), device)

    @property
    def template(self) -> str:
        """The host's template."""
        return self.host.template

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The host's groups, and FiLM and head with their multiplier."""
        film = [self.image_scale, self.image_shift, self.text_scale, self.text_shift]
        own = ParameterGroup([*film, *self.head.parameters()], self.recipe.head_rate_factor)
        return [*self.host.parameter_groups(), own]

    def loss(self, batch: Batch) -> Tensor:
        """(1 - λ) · CE of the host + λ · CE of the head over images and texts."""
        share, y = self.recipe.head_share, batch.labels_B
        image_BE, text_KE = self._embed(batch)
        host_loss = nn.functional.cross_entropy(self._similarity(image_BE, text_KE), y)
        rows = torch.cat([self._film_text(text_KE[y]), self._film_image(image_BE)])
        head_loss = nn.functional.cross_entropy(self._head_scores(rows), torch.cat([y, y]))
        return (1 - share) * host_loss + share * head_loss

    def logits(self, batch: Batch) -> Tensor:
        """Class scores (1 - λ) · z + λ · (W FiLM(v) + b), for the training classes: [B, K]."""
        share = self.recipe.head_share
        image_BE, text_KE = self._embed(batch)
        head_BK = self._head_scores(self._film_image(image_BE))
        return (1 - share) * self._similarity(image_BE, text_KE) + share * head_BK

    def end_epoch(self, epoch: int) -> None:
        """Forward to the host method."""
        self.host.end_epoch(epoch)

    def fold(self) -> ExportedPrompts:
        """The host's tensors, and the head with FiLM folded in: W diag(gamma), W beta + b."""
        head = LinearHead(
            weight_KE=detached(self.head.weight * self.image_scale),
            bias_K=detached(self.head(self.image_shift)),
            share=self.recipe.head_share,
        )
        return dataclasses.replace(self.host.fold(), head=head)

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image_BE, text_KE = self.host.embed(batch)
        return image_BE.to(self.image_scale.dtype), text_KE.to(self.text_scale.dtype)

    def _similarity(self, image_BE: Tensor, text_KE: Tensor) -> Tensor:
        return class_scores(self.base_model.logit_scale, unit_norm(image_BE), unit_norm(text_KE))

    def _head_scores(self, rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):  # float32, like the scores it is mixed with
            scores: Tensor = self.head(rows)
        return scores

    def _film_image(self, embeddings: Tensor) -> Tensor:
        return self.image_scale * embeddings + self.image_shift

    def _film_text(self, embeddings: Tensor) -> Tensor:
        return self.text_scale * embeddings + self.text_shift
