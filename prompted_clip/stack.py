"""A prompt stack: everything needed to answer for one domain, on the device and in the types the model wants.

Legend: D prompt layers, P prompt tokens, W tower width, K classes, E joint width.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from prompted_clip.prompts import PromptGrid, join_groups


class Lane(NamedTuple):
    """Rows with equal lanes may share one forward, whatever their domains.

    Attributes:
        n_image_tokens: prompt positions in the image tower; depths may differ inside a lane.
        head: `static`: text features do not depend on the image.
    """

    n_image_tokens: int
    head: str


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
        text_boost, text_adapt: [D, P, text width] or None; `text_adapt` may be [K, D, P, W] (class-specific contexts).
        text_features: [K, E] float32, unit norm.
        image: the joint image prompts, boosting before adapting; None for the plain tower.
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
    text_features: Tensor
    image: PromptGrid | None

    @property
    def lane(self) -> Lane:
        """Which rows this stack may share a forward with."""
        return Lane(self.image.n_tokens if self.image is not None else 0, "static")

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
        """Device memory of the stack's tensors, in bytes."""
        groups = (self.image_boost, self.image_adapt, self.text_boost, self.text_adapt, self.text_features)
        joint = self.image.tokens.nbytes if self.image is not None else 0
        return joint + sum(tensor.nbytes for tensor in groups if tensor is not None)
