"""What a conversion knows besides the checkpoint, and what it makes of it.

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
    """What an import is made for, besides the checkpoint.

    Attributes:
        base_model: the backbone, plain or boosted.
        class_names: K names.
        template: what stands behind the prompts, with one `{}`; None is the method's own.
        position: of the class name in CoOp's context.
        text_features_KE: the teacher's text features, for methods that answer in its space.
    """

    base_model: PromptedBackbone
    class_names: Sequence[str]
    template: str | None = None
    position: Position = "end"
    text_features_KE: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Converted:
    """A checkpoint as the package has it.

    Attributes:
        exported: the prompts and heads.
        template: what stands behind the prompts, with one `{}`.
        notes: what a person should know about this import, one sentence each.
    """

    exported: ExportedPrompts
    template: str
    notes: tuple[str, ...] = ()
