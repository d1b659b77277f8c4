"""DePT: a host method keeps the class-shared channels, a linear head on scaled channels takes the base classes.

Source: DePT (arXiv 2309.07439), section 3, and its repository. With image and text embeddings v and t_c of the host
(not brought to length 1), z the host's scores, FiLM(v) = gamma ⊙ v + beta with own gamma, beta for images and for
texts, and one head W, b:

    L      = (1 - λ) · CE(z, y) + λ · CE(W [FiLM(t_y); FiLM(v)] + b, [y; y])
    logits = (1 - λ) · z + λ · (W FiLM(v) + b)      for the classes it was trained on;  z alone for any other

[·; ·] lies along the batch: each image gives the head two rows, its own and its class's text. It knows the head and how
it is mixed with the host; it does not know which host it has.

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
    """The repository's values; the host's own settings come from its recipe."""

    learning_rate: float = Field(default=0.0035, gt=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=4, ge=1)
    host: Literal["coop", "ivlp", "maple"] = Field(
        default="maple",
        description="the method that learns the prompts; of the paper's four, coop and maple; ivlp is our own pairing",
    )
    head_share: float = Field(default=0.7, ge=0, le=1, description="λ, the head's share in loss and scores")
    head_rate_factor: float = Field(default=6.5, gt=0, description="FiLM and head learn at this multiple of the rate")
    host_values: dict[str, Any] = Field(default_factory=dict, description="the host's own keys")


class DePTHost(AdaptingMethod, Protocol):
    """What DePT needs of its host, besides what every method has: embeddings, and cross-entropy for a loss."""

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings under the host's prompts of images [B, E] and classes [K, E], before they are brought to length 1.

        The images come as pixels, whatever else the host may want for itself.
        """


class DePT(nn.Module):
    """The host, gamma (scale) and beta (shift) [E] for images and for texts, and the head.

    Args:
        base_model: the frozen CLIP that the host adapts.
        class_names: the host's K class names.
        recipe: λ, the head's rate and seed.
        host: the method that learns prompts, already built.
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
        """The host's."""
        return self.host.template

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The host's groups at their rates, FiLM and head at a higher one."""
        film = [self.image_scale, self.image_shift, self.text_scale, self.text_shift]
        own = ParameterGroup([*film, *self.head.parameters()], self.recipe.head_rate_factor)
        return [*self.host.parameter_groups(), own]

    def loss(self, batch: Batch) -> Tensor:
        """(1 - λ) · the host's CE + λ · the head's, over images and texts."""
        share, y = self.recipe.head_share, batch.labels_B
        image_BE, text_KE = self._embed(batch)
        host_loss = nn.functional.cross_entropy(self._similarity(image_BE, text_KE), y)
        rows = torch.cat([self._film_text(text_KE[y]), self._film_image(image_BE)])
        head_loss = nn.functional.cross_entropy(self._head_scores(rows), torch.cat([y, y]))
        return (1 - share) * host_loss + share * head_loss

    def logits(self, batch: Batch) -> Tensor:
        """(1 - λ) · z + λ · head on the image, for the classes of training: [B, K]."""
        share = self.recipe.head_share
        image_BE, text_KE = self._embed(batch)
        head_BK = self._head_scores(self._film_image(image_BE))
        return (1 - share) * self._similarity(image_BE, text_KE) + share * head_BK

    def end_epoch(self, epoch: int) -> None:
        """Told on to the host."""
        self.host.end_epoch(epoch)

    def fold(self) -> ExportedPrompts:
        """The host's fold; the head takes FiLM in: W diag(gamma) and W beta + b."""
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
        with torch.autocast(rows.device.type, enabled=False):  # float32, as the scores they are mixed with
            scores: Tensor = self.head(rows)
        return scores

    def _film_image(self, embeddings: Tensor) -> Tensor:
        return self.image_scale * embeddings + self.image_shift

    def _film_text(self, embeddings: Tensor) -> Tensor:
        return self.text_scale * embeddings + self.text_shift
