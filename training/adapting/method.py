"""What every adapting method is to the training loop, and the only thing that leaves training: its folded tensors.

Legend: B rows, C/H/W image, K classes, L prompt layers, P prompt tokens, W tower width, E joint width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from training.loop import ParameterGroup

Input = Literal["images", "features", "reference"]


@dataclass(frozen=True)
class Batch:
    """One step's images, as far as the method wants them.

    Attributes:
        labels_B: class indices, int64.
        images_BCHW: normalised images; None unless the method wants `pixels`.
        features_BE: the base model's image features of the same views, float32, unit norm, no gradient; None unless
            the method wants `features`.
        reference_BE: the reference model's image features likewise; None unless the method wants `reference`.
    """

    labels_B: Tensor
    images_BCHW: Tensor | None = None
    features_BE: Tensor | None = None
    reference_BE: Tensor | None = None


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier on unnormalised image embeddings that shares the answer: (1-share) z + share (W v + b).

    Attributes:
        weight_KE: [K, E].
        bias_K: [K].
        share: of the head in the logits, 0 to 1.
    """

    weight_KE: Tensor
    bias_K: Tensor
    share: float


@dataclass(frozen=True)
class ExportedPrompts:
    """A trained method as plain tensors; everything that does not depend on the image has been run.

    Attributes:
        image_adapt: [L, P, vision width] or None.
        text_adapt: [L, P, text width], [K, L, P, text width] (class-specific), or None.
        text_features_KE: unit-norm features, where the groups alone do not give them (a context that is not in front of
            the class name); None where they do.
        is_closed_vocabulary: whether other labels must be refused.
        head: an extra linear head, or None.
        projector: `hidden.weight [H, E]`, `hidden.bias`, `weight [E2, H]`, `bias`: two linear layers and a ReLU between
            them, which take image embeddings to the space of `text_features_KE [K, E2]` (PromptKD); or None.
        meta_net: the meta-net of a conditional head, `linear1.weight [H, E]`, `linear1.bias`, `linear2.weight [W, H]`,
            `linear2.bias`; None for static text features.
    """

    image_adapt: Tensor | None = None
    text_adapt: Tensor | None = None
    text_features_KE: Tensor | None = None
    is_closed_vocabulary: bool = False
    head: LinearHead | None = None
    projector: Mapping[str, Tensor] | None = None
    meta_net: Mapping[str, Tensor] | None = None


class AdaptingMethod(Protocol):
    """A method of phase 2: an `nn.Module` whose parameters are all it learns.

    Built as `Method(base_model, class_names, recipe)`; everything random starts from `recipe.seed`.
    """

    required_inputs: ClassVar[frozenset[Input]]
    averages_over_images: ClassVar[bool]
    """Whether the loss of a batch is the mean of its images' losses; several processes may then share a batch."""

    @property
    def template(self) -> str:
        """What stands behind the prompts, with one `{}` for the class name."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """What learns, and how fast."""

    def loss(self, batch: Batch) -> Tensor:
        """The training loss: a float32 scalar whose gradient is the step's direction."""

    def logits(self, batch: Batch) -> Tensor:
        """Scores [B, K] as they are used to classify; `fold` reproduces them."""

    def end_epoch(self, epoch: int) -> None:
        """Told after each epoch (0-based), for methods that keep a running average of their prompts."""

    def fold(self) -> ExportedPrompts:
        """The method as plain tensors, on the CPU, detached."""

    def state_dict(self) -> dict[str, Any]:
        """As `nn.Module`'s; everything a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """As `nn.Module`'s."""


def required_input(tensor: Tensor | None, want: str) -> Tensor:
    """A field of a batch that the method's `wants` asked for.

    Raises:
        ValueError: the caller left it out.
    """
    if tensor is None:
        msg = f"This method wants {want!r}, and the batch came without; fill what `wants` names."
        raise ValueError(msg)
    return tensor


def detached(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU, as a fold hands it over."""
    return tensor.detach().to("cpu", torch.float32, copy=True)
