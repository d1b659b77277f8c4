"""open_clip's CLIP with prompts as inputs: the model that training and service share.

A name is imported when it is first asked for: who only needs the errors or the pictures does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone, load_backbone
    from prompted_clip.errors import PromptedClipError, StackMismatchError, TextTooLongError, WeightsError
    from prompted_clip.model import PromptedClip
    from prompted_clip.preprocess import normalize_pixels, to_pixels
    from prompted_clip.prompts import PromptGrid, collate_grids, join_groups
    from prompted_clip.stack import Lane, PromptStack
    from prompted_clip.text import encode_classes, encode_texts
    from prompted_clip.vision import encode_image

__all__ = [
    "Backbone",
    "Lane",
    "PromptGrid",
    "PromptStack",
    "PromptedClip",
    "PromptedClipError",
    "StackMismatchError",
    "TextTooLongError",
    "WeightsError",
    "collate_grids",
    "encode_classes",
    "encode_image",
    "encode_texts",
    "join_groups",
    "load_backbone",
    "normalize_pixels",
    "to_pixels",
]

_HOMES: Final = {
    "Backbone": "backbone",
    "Lane": "stack",
    "PromptGrid": "prompts",
    "PromptStack": "stack",
    "PromptedClip": "model",
    "PromptedClipError": "errors",
    "StackMismatchError": "errors",
    "TextTooLongError": "errors",
    "WeightsError": "errors",
    "collate_grids": "prompts",
    "encode_classes": "text",
    "encode_image": "vision",
    "encode_texts": "text",
    "join_groups": "prompts",
    "load_backbone": "backbone",
    "normalize_pixels": "preprocess",
    "to_pixels": "preprocess",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"prompted_clip.{_HOMES[name]}"), name)
