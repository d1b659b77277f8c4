"""The interface of adapting methods, and the tensors that they export.

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
    """Inputs of one step. A field is None unless the method's `required_inputs` contains it.

    Attributes:
        labels_B: class indices, int64.
        images_BCHW: normalised images (`images`).
        features_BE: image features of the base model for the same views, float32, unit norm, no gradient (`features`).
        reference_BE: image features of the reference model, likewise (`reference`).
    """

    labels_B: Tensor
    images_BCHW: Tensor | None = None
    features_BE: Tensor | None = None
    reference_BE: Tensor | None = None


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier on image embeddings v, mixed into the logits: (1-share) z + share (W v + b).

    Attributes:
        weight_KE: W [K, E].
        bias_K: b [K].
        share: weight of the head in the logits, 0 to 1.
        reads_unit: whether v is normalised to length 1 first.
    """

    weight_KE: Tensor
    bias_K: Tensor
    share: float
    reads_unit: bool = False


@dataclass(frozen=True)
class ExportedPrompts:
    """A trained method as plain tensors; every part that does not depend on the image has been evaluated.

    Attributes:
        image_adapt: [L, P, vision width] or None.
        text_adapt: [L, P, text width], [K, L, P, text width] (class-specific), or None.
        text_features_KE: unit-norm text features, if they cannot be computed from the prompt groups (a context that is
            not before the class name); else None.
        is_closed_vocabulary: whether the prompts are valid for the training classes only.
        further_classes: classes without images whose text features follow those of the training classes.
        head: an additional linear head, or None.
        projector: PromptKD's `hidden.weight [H, E]`, `hidden.bias`, `weight [E2, H]`, `bias`: two linear layers with a
            ReLU between them, from image embeddings to the space of `text_features_KE [K, E2]`; or None.
        meta_net: CoCoOp's `linear1.weight [H, E]`, `linear1.bias`, `linear2.weight [W, H]`, `linear2.bias`; None for
            static text features.
        image_boost: boosting prompts that phase 2 trained further, [L, P, vision width]; None for the base model's.
        text_boost: the same, [L, P, text width].
    """

    image_adapt: Tensor | None = None
    text_adapt: Tensor | None = None
    text_features_KE: Tensor | None = None
    is_closed_vocabulary: bool = False
    further_classes: Sequence[str] = ()
    head: LinearHead | None = None
    projector: Mapping[str, Tensor] | None = None
    meta_net: Mapping[str, Tensor] | None = None
    image_boost: Tensor | None = None
    text_boost: Tensor | None = None


class AdaptingMethod(Protocol):
    """A method of phase 2: an `nn.Module` whose parameters are the trainable ones.

    Constructed as `Method(base_model, class_names, recipe)`; all randomness comes from `recipe.seed`.
    """

    required_inputs: ClassVar[frozenset[Input]]
    averages_over_images: ClassVar[bool]
    """Whether a batch's loss is the mean of its images' losses, so that processes can share a batch."""

    @property
    def template(self) -> str:
        """Text after the prompts, with one `{}` for the class name."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Trainable parameters, grouped by learning rate."""

    def loss(self, batch: Batch) -> Tensor:
        """Training loss: a float32 scalar whose gradient is the descent direction."""

    def logits(self, batch: Batch) -> Tensor:
        """Class scores [B, K], as the exported prompts reproduce them."""

    def end_epoch(self, epoch: int) -> None:
        """Called after each epoch (0-based); PromptSRC averages its prompts here."""

    def fold(self) -> ExportedPrompts:
        """Export the method as plain tensors: float32, on the CPU, detached."""

    def state_dict(self) -> dict[str, Any]:
        """See `nn.Module.state_dict`; contains all state needed to resume."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """See `nn.Module.load_state_dict`."""


def required_input(tensor: Tensor | None, name: Input) -> Tensor:
    """Return a field of a batch that must not be None.

    Raises:
        ValueError: the field is None.
    """
    if tensor is None:
        msg = f"The batch lacks {name!r}, which the method lists in `required_inputs`."
        raise ValueError(msg)
    return tensor


def detached(tensor: Tensor) -> Tensor:
    """A detached float32 copy on the CPU."""
    return tensor.detach().to("cpu", torch.float32, copy=True)
