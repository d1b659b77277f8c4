"""Input of a conversion besides the checkpoint, and its result.

Legend: K classes, E width of the text features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from training.adapting.method import ExportedPrompts
from training.adapting.text_context import Position
from training.prompted_backbone import PromptedBackbone


@dataclass(frozen=True, eq=False)
class Target:
    """The model and classes of an import.

    Attributes:
        base_model: the backbone, plain or boosted.
        class_names: K names.
        template: text after the prompts, with one `{}`; None for the method's own.
        position: of the class name in CoOp's context.
        text_features_KE: the teacher's text features, for PromptKD.
    """

    base_model: PromptedBackbone
    class_names: Sequence[str]
    template: str | None = None
    position: Position = "end"
    text_features_KE: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Converted:
    """A converted checkpoint.

    Attributes:
        exported: prompts and heads.
        template: text after the prompts, with one `{}`.
        notes: notes for the user, one sentence each.
    """

    exported: ExportedPrompts
    template: str
    notes: tuple[str, ...] = ()
