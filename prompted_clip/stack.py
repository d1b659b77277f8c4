"""A prompt stack: everything needed to answer for one domain, in host memory and in the types the model wants.

It never changes. What a forward reads is a copy of it on the device, see `bank.py`.

Legend: D prompt layers, P prompt tokens, W tower width, K classes, F width of the text features: the joint width, but
for a projector's.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from prompted_clip.heads import ConditionalHead, Head, nbytes
from prompted_clip.prompts import PromptGrid, join_groups


class Lane(NamedTuple):
    """Rows with equal lanes may share one forward, whatever their domains.

    Attributes:
        n_image_tokens: prompt positions in the image tower; depths may differ inside a lane.
        head: `static`, text features do not depend on the image, whatever else scores; `conditional`, every image costs
            as many text forwards as it has classes, which must not slow down static rows.
    """

    n_image_tokens: int
    head: Literal["static", "conditional"]


@dataclass(frozen=True, eq=False)
class PromptStack:
    """One version of one domain.

    Attributes:
        domain: its name.
        version: number in the store, None for a stack that never was in one.
        digest: `sha256:…` of the bundle, None likewise.
        class_names: what answers name.
        class_texts: what stands for each class inside a template.
        templates: the text around a class behind the text prompts.
        logit_scale: s, the multiplier of cosine similarities.
        image_boost, image_adapt: [D, P, vision width] or None.
        text_boost, text_adapt: [D, P, text width] or None; `text_adapt` may be [K, D, P, W] (class-specific contexts),
            and is None with a conditional head, which keeps its context itself.
        text_features: [K, F] float32, unit norm; None with a conditional head.
        image: the joint image prompts, boosting before adapting; None for the plain tower.
        labels: `own`: text features cannot be made for other classes.
        head: what else scores; None for text features alone.
    """

    domain: str
    version: int | None
    digest: str | None
    class_names: tuple[str, ...]
    class_texts: tuple[str, ...]
    templates: tuple[str, ...]
    logit_scale: float
    image_boost: Tensor | None
    image_adapt: Tensor | None
    text_boost: Tensor | None
    text_adapt: Tensor | None
    text_features: Tensor | None
    image: PromptGrid | None
    labels: Literal["any", "own"] = "any"
    head: Head | None = None

    @property
    def lane(self) -> Lane:
        """Which rows this stack may share a forward with."""
        n_image_tokens = self.image.n_tokens if self.image is not None else 0
        return Lane(n_image_tokens, "conditional" if isinstance(self.head, ConditionalHead) else "static")

    @property
    def n_text_rows(self) -> int:
        """Text forwards that one image costs: none, or one per class with a conditional head."""
        return self.head.n_classes if isinstance(self.head, ConditionalHead) else 0

    @property
    def text(self) -> PromptGrid | None:
        """The joint text prompts, adapting before boosting (CasPL section 3.2)."""
        return join_groups([self.text_adapt, self.text_boost])

    @property
    def has_class_contexts(self) -> bool:
        """Whether text prompts belong to the trained classes and cannot serve other labels."""
        return self.text_adapt is not None and self.text_adapt.ndim == 4

    @property
    def nbytes(self) -> int:
        """Memory of the stack's tensors, in bytes."""
        groups = (self.image_boost, self.image_adapt, self.text_boost, self.text_adapt, self.text_features)
        joint = self.image.tokens.nbytes if self.image is not None else 0
        head = nbytes(self.head) if self.head is not None else 0
        return joint + head + sum(tensor.nbytes for tensor in groups if tensor is not None)
