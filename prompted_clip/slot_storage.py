"""The device memory of the prompt bank: what fills a slot, and what a batch reads of its slots.

Two arenas, of prompt tokens and of text features, hold all stacks; a batch gathers its rows from them by number. Extra
heads lie beside the arenas and go with their slot. Does not know which stacks are worth having here.

Legend: B rows, D prompt layers, P prompt positions, E joint width.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from prompted_clip.arena import Arena, Rows
from prompted_clip.backbone import Backbone
from prompted_clip.heads import ConditionalHead, moved
from prompted_clip.prompts import PromptGrid
from prompted_clip.side_stream import SideStream
from prompted_clip.slot import Room, Slot, room_of
from prompted_clip.stack import PromptStack
from prompted_clip.transfers import sent

TOKENS_PER_SLOT: Final = 144
"""Prompt tokens of an ordinary stack: twelve in each of twelve layers. A larger one takes the room of several."""
CLASSES_PER_SLOT: Final = 128
"""Classes of an ordinary stack: few domains have more. Likewise."""


class SlotStorage:
    """Room for a fixed number of ordinary stacks.

    Args:
        backbone: whose widths, type and device the tensors have; they are allocated with the first stack.
        n_slots: most stacks.
    """

    def __init__(self, backbone: Backbone, n_slots: int) -> None:
        self._device = backbone.device
        self._stream = SideStream(backbone.device)
        self._n_free_slots = n_slots
        room = ordinary_room(n_slots)
        precise = torch.promote_types(backbone.dtype, torch.float32)
        self._tokens = Arena(room.tokens, backbone.vision_width, backbone.dtype, backbone.device)
        self._classes = Arena(room.classes, backbone.embed_dim, precise, backbone.device)

    @property
    def free(self) -> Room:
        """What is left."""
        return Room(self._n_free_slots, self._tokens.n_free, self._classes.n_free)

    @torch.inference_mode()
    def put(self, stack: PromptStack) -> Slot:
        """Copy a stack's tensors to free rows, beside whatever runs; if that fails, the rows stay free.

        Raises:
            ValueError: there is not enough room, or the stack has nothing to score with.
        """
        need = room_of(stack)
        token_rows, class_rows = self._tokens.take(need.tokens), self._classes.take(need.classes)
        try:
            with self._stream.writing():
                slot = self._fill(stack, token_rows, class_rows)
        except BaseException:
            self._tokens.give_back(token_rows)
            self._classes.give_back(class_rows)
            raise
        self._n_free_slots -= 1
        return slot

    def drop(self, slot: Slot) -> None:
        """Forget a stack that no forward will read any more."""
        self._stream.write_after(slot.last_read)
        self._n_free_slots += 1
        self._tokens.give_back(slot.token_rows_DP.reshape(-1))
        self._classes.give_back(slot.class_rows_K)

    def wait_for_writes(self) -> None:
        """What the calling thread sends to the device from now on sees every slot as it was put."""
        self._stream.wait_for_writes()

    def mark_read(self, slots: Iterable[Slot]) -> None:
        """What the calling thread has sent to the device so far is done before these slots' rows get new content."""
        mark = self._stream.read_until_now()
        for slot in slots:
            slot.last_read = mark

    def prompts(self, slots: Sequence[Slot]) -> PromptGrid | None:
        """The image prompts of a batch, one slot per row: shared if all rows have the same slot; None without prompts.

        Raises:
            ValueError: rows with different numbers of prompt tokens in one batch.
        """
        counts = {slot.n_tokens for slot in slots}
        if len(counts) > 1:
            msg = f"Rows of one batch need the same number of prompt tokens; found {sorted(counts)}."
            raise ValueError(msg)
        if counts == {0}:
            return None
        is_shared = all(slot is slots[0] for slot in slots)
        own = slots[:1] if is_shared else slots
        max_depth = max(slot.depth for slot in own)
        # Depths and rows travel in one copy: first the depths, then the rows of each layer.
        index = np.zeros((len(own), 1 + max_depth, own[0].n_tokens), dtype=np.int64)
        for row, slot in enumerate(own):
            index[row, 0] = slot.depths_P
            index[row, 1 : 1 + slot.depth] = slot.token_rows_DP
        index_BLP = sent(index, self._device)
        tokens, depths = self._tokens.read(index_BLP[:, 1:]), index_BLP[:, 0]
        return PromptGrid(
            tokens=tokens[0] if is_shared else tokens,
            depths=depths[0] if is_shared else depths,
            min_depth=int(index[:, 0].min()),
            max_depth=max_depth,
        )

    def text_features(self, index: Tensor) -> Tensor:
        """Text features by their rows, an index of any shape on the device: its shape and E behind it."""
        return self._classes.read(index)

    def text_features_of(self, slot: Slot) -> Tensor:
        """One stack's own: [K, E], or of another width for a projector."""
        if slot.features_KF is not None:
            return slot.features_KF
        return self._classes.read(sent(slot.class_rows_K, self._device))

    def _fill(self, stack: PromptStack, token_rows: Rows, class_rows: Rows) -> Slot:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, non_blocking=True)

        if stack.image is not None:
            self._tokens.write(token_rows, stack.image.tokens.flatten(0, 1))
        features_KF, text = None, None
        if isinstance(stack.head, ConditionalHead):
            text = stack.text.moved(move) if stack.text is not None else None
        elif stack.text_features is None:
            msg = f"The stack of domain {stack.domain!r} has neither text features nor a conditional head."
            raise ValueError(msg)
        elif len(class_rows):
            self._classes.write(class_rows, stack.text_features)
        else:
            features_KF = move(stack.text_features)
        return Slot(
            token_rows_DP=token_rows.reshape(stack.image.tokens.shape[:2] if stack.image is not None else (0, 0)),
            depths_P=stack.image.depths.numpy() if stack.image is not None else token_rows,
            class_rows_K=class_rows,
            n_classes=len(stack.class_names),
            logit_scale=stack.logit_scale,
            head=moved(stack.head, move) if stack.head is not None else None,
            features_KF=features_KF,
            text=text,
        )


def ordinary_room(n_slots: int) -> Room:
    """What so many ordinary stacks take up."""
    return Room(n_slots, n_slots * TOKENS_PER_SLOT, n_slots * CLASSES_PER_SLOT)
