"""A prompt stack: everything needed to classify images of one domain. Immutable.

Stacks are loaded into host memory; forwards read a copy on the device, see `bank.py`.

Legend: D prompt layers, P prompt tokens, W tower width, K classes, F width of the text features: the joint width, but
for a projector's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from prompted_clip.errors import StackMismatchError
from prompted_clip.heads import ClassHead, ConditionalHead, Head, Projector
from prompted_clip.prompts import PromptGrid, join_groups
from prompted_clip.transfers import map_tensors, nbytes


class Lane(NamedTuple):
    """Rows with equal lanes can share one forward, whatever their domains and prompt depths.

    With a conditional head every image costs one text forward per class, which must not slow down static rows.
    """

    n_image_tokens: int
    head: Literal["static", "conditional"]


@dataclass(frozen=True, eq=False)
class PromptStack:
    """One version of one domain's prompts and classes.

    Attributes:
        digest: `sha256:…` of the bundle, None for a stack that was not loaded from one.
        class_names: labels of predictions.
        class_texts: the text of each class inside a template.
        templates: the text around a class, behind the text prompts.
        logit_scale: s, the multiplier of cosine similarities.
        temperature: divides the logits of the bundle's own classes.
        image_boost, image_adapt: [D, P, vision width] or None.
        text_boost, text_adapt: [D, P, text width] or None; `text_adapt` may be [K, D, P, W] (class-specific contexts),
            and is None with a conditional head, which holds its own context.
        text_features: [K, F] float32, unit norm; None with a conditional head.
        image: the joint image prompts, boosting before adapting; None for the plain tower.
        labels: `own`: text features cannot be computed for other classes.
        head: scores classes instead of or besides the text features; None for text features alone.
        abstain: abstention thresholds of the bundle's own classes, by rate.
        image_digest: SHA-256 (hex) of the image prompts as float32, on which image embeddings depend; empty without
            image prompts.
    """

    domain: str
    digest: str | None
    class_names: tuple[str, ...]
    class_texts: tuple[str, ...]
    templates: tuple[str, ...]
    logit_scale: float
    image_boost: Tensor | None = None
    image_adapt: Tensor | None = None
    text_boost: Tensor | None = None
    text_adapt: Tensor | None = None
    text_features: Tensor | None = None
    image: PromptGrid | None = None
    labels: Literal["any", "own"] = "any"
    head: Head | None = None
    temperature: float = 1.0
    abstain: Mapping[str, float] = field(default_factory=dict)
    image_digest: str = ""

    @cached_property
    def lane(self) -> Lane:
        """See `Lane`."""
        n_image_tokens = self.image.n_tokens if self.image is not None else 0
        return Lane(n_image_tokens, "conditional" if isinstance(self.head, ConditionalHead) else "static")

    @cached_property
    def n_text_rows(self) -> int:
        """Text forwards per image: one per class with a conditional head, otherwise 0."""
        return self.head.n_classes if isinstance(self.head, ConditionalHead) else 0

    @cached_property
    def text_scale(self) -> float:
        """The multiplier of cosine similarities, divided by the temperature."""
        return self.logit_scale / self.temperature

    @property
    def text(self) -> PromptGrid | None:
        """The joint text prompts, adapting before boosting (CasPL section 3.2)."""
        return join_groups([self.text_adapt, self.text_boost])

    @property
    def has_boosting(self) -> bool:
        """Whether it has boosting prompts that other classes can use; those trained with a projector work only with it.

        A projector that was trained on top of boosting prompts comes with adapting prompts.
        """
        has_groups = self.image_boost is not None or self.text_boost is not None
        is_of_projector = isinstance(self.head, Projector) and self.image_adapt is None and self.text_adapt is None
        return has_groups and not is_of_projector

    @property
    def nbytes(self) -> int:
        """Bytes of the stack's tensors."""
        return nbytes(self)

    def abstain_below(self, rate: float) -> float:
        """The probability below which the most probable class is too uncertain, at this abstention rate.

        Raises:
            StackMismatchError: the bundle has no threshold for this rate.
        """
        for known, threshold in self.abstain.items():
            if float(known) == rate:
                return threshold
        msg = f"The bundle for domain {self.domain!r} has no abstention threshold for the rate {rate:g}; "
        if self.abstain:
            raise StackMismatchError(f"{msg}use one of {', '.join(self.abstain)}.")
        raise StackMismatchError(f"{msg}it is not calibrated. Fit a few-shot head to get thresholds.")

    def restricted(self, names: Sequence[str]) -> "PromptStack":
        """The stack with some of its classes, in the given order; their logits stay the same.

        Abstention thresholds are dropped, as they are for all classes together.

        Raises:
            StackMismatchError: a name is not among the classes, or the stack has a conditional head.
        """
        if self.text_features is None:
            raise StackMismatchError(f"The classes of domain {self.domain!r} are fixed: it has a conditional head.")
        if unknown := sorted(set(names) - set(self.class_names)):
            raise StackMismatchError(f"Domain {self.domain!r} does not have the classes {', '.join(unknown)}.")
        rows = [self.class_names.index(name) for name in names]
        head = self.head
        if isinstance(head, ClassHead):
            head = replace(head, weight_KE=head.weight_KE[rows], bias_K=head.bias_K[rows])
        text_adapt = self.text_adapt
        if text_adapt is not None and text_adapt.ndim == 4:
            text_adapt = text_adapt[rows]
        return replace(
            self,
            class_names=tuple(names),
            class_texts=tuple(self.class_texts[row] for row in rows),
            text_features=self.text_features[rows],
            text_adapt=text_adapt,
            head=head,
            abstain={},
        )

    def without_groups(self) -> "PromptStack":
        """A copy without the separate prompt groups, which no forward reads."""
        return replace(self, image_boost=None, image_adapt=None, text_boost=None, text_adapt=None)

    def to(self, device: torch.device) -> "PromptStack":
        """A copy on a device, without the separate prompt groups."""
        return map_tensors(self.without_groups(), lambda tensor: tensor.to(device, non_blocking=True))
