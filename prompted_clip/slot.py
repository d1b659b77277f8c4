"""One stack's place in the bank, and how much room it takes.

Legend: D prompt layers, P prompt positions, K classes, F width of text features outside the joint space.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prompted_clip.arena import Rows
from prompted_clip.heads import Head, Projector
from prompted_clip.prompts import PromptGrid
from prompted_clip.stack import PromptStack


class Room(NamedTuple):
    """What a stack takes up in the bank, or what there is."""

    slots: int
    tokens: int
    classes: int

    def holds(self, other: "Room") -> bool:
        """Whether `other` fits in here."""
        return self.slots >= other.slots and self.tokens >= other.tokens and self.classes >= other.classes

    def plus(self, other: "Room") -> "Room":
        """Both together."""
        return Room(self.slots + other.slots, self.tokens + other.tokens, self.classes + other.classes)


@dataclass(eq=False)
class Slot:
    """A resident stack's place.

    Attributes:
        token_rows_DP: rows of its prompt tokens; [0, 0] without prompts.
        depths_P: layers with own tokens per position.
        class_rows_K: rows of its text features; empty where they are not in the arena.
        n_classes: K.
        logit_scale: s, the multiplier of cosine similarities.
        head: what else scores, on the device; None for text features alone.
        features_KF: text features outside the joint space (a projector's), on the device.
        text: the text tower's prompts, on the device, with a conditional head only.
        n_holders: forwards that read it at this moment.
        is_kept: never leaves.
        last_read: on a device of its own, a mark behind the last forward that reads it.
    """

    token_rows_DP: Rows
    depths_P: Rows
    class_rows_K: Rows
    n_classes: int
    logit_scale: float
    head: Head | None = None
    features_KF: Tensor | None = None
    text: PromptGrid | None = None
    n_holders: int = 0
    is_kept: bool = False
    last_read: torch.cuda.Event | None = None

    @property
    def n_tokens(self) -> int:
        """P, prompt positions in the image tower."""
        return len(self.depths_P)

    @property
    def depth(self) -> int:
        """D, layers with prompts."""
        return len(self.token_rows_DP)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but text features scores."""
        return self.head is None

    @property
    def room(self) -> Room:
        """What it takes up."""
        return Room(1, self.token_rows_DP.size, len(self.class_rows_K))


def room_of(stack: PromptStack) -> Room:
    """What a stack takes up in a bank."""
    depth, n_tokens = stack.image.tokens.shape[:2] if stack.image is not None else (0, 0)
    # A projector's text features have a width of their own and lie beside the arena.
    is_joint = stack.text_features is not None and not isinstance(stack.head, Projector)
    return Room(1, depth * n_tokens, len(stack.class_names) if is_joint else 0)
