"""open_clip's CLIP with prompts as inputs: the model that training and service share."""

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
