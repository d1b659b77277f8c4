"""Images against their own domains' classes: many domains in a few products, and only the best classes copied back.

p(c | x) = softmax_c( s · <f(x), g_c> ). Source: CLIP (arXiv 2103.00020), figure 3. What a stack's head makes of that
stands in `heads.py`.

Legend: B rows, K most classes of a row, E joint width.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.heads import ClassHead, ConditionalHead, ImageFeatures, Projector
from prompted_clip.slot import Slot
from prompted_clip.slot_storage import SlotStorage
from prompted_clip.transfers import Inbound, sent

GATHERED_BYTES: Final = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Most text features gathered at once: what stays in a processor's cache; what does not crowd a GPU's memory."""


class Ranked(NamedTuple):
    """One image's most probable classes, best first: positions among its stack's classes, and probabilities 0 to 1."""

    class_ids: list[int]
    probabilities: list[float]


class Ranking:
    """The most probable classes of a batch, which may still be on their way from the device.

    Args:
        best_ids_BK: positions among each row's classes, best first.
        best_BK: their probabilities.
        n_wanted: how many of them are each row's.
    """

    def __init__(self, best_ids_BK: Tensor, best_BK: Tensor, n_wanted: Sequence[int]) -> None:
        self._inbound = Inbound(best_ids_BK, best_BK)
        self._n_wanted = n_wanted

    @cached_property
    def rows(self) -> list[Ranked]:
        """One per row of the batch; waits until they are here."""
        ids, probabilities = (tensor.tolist() for tensor in self._inbound.wait())
        return [Ranked(i[:n], p[:n]) for i, p, n in zip(ids, probabilities, self._n_wanted, strict=True)]


class Scorer:
    """Scores images whose stacks are resident.

    Args:
        backbone: the frozen CLIP; text features made per image run through it.
        storage: where the stacks are.
        max_text_rows: pairs of image and class that go through the text tower at once.
        on_progress: called after each such forward.
    """

    def __init__(
        self, backbone: Backbone, storage: SlotStorage, *, max_text_rows: int, on_progress: Callable[[], None]
    ) -> None:
        self._backbone = backbone
        self._storage = storage
        self._max_text_rows = max_text_rows
        self._on_progress = on_progress

    def rank(self, images: ImageFeatures, slots: Sequence[Slot], top_ks: Sequence[int]) -> Ranking:
        """The most probable classes of each image; the host does not wait for them.

        Args:
            images: from the image tower, under the prompts of these slots.
            slots: one per row.
            top_ks: how many classes each row wants; a row with fewer gets all of its own.
        """
        logits_BK = self.logits(images, slots)
        best = logits_BK.softmax(dim=-1).topk(min(max(top_ks), logits_BK.shape[1]), dim=-1)
        n_wanted = [min(top_k, slot.n_classes) for top_k, slot in zip(top_ks, slots, strict=True)]
        return Ranking(best.indices, best.values, n_wanted)

    def logits(self, images: ImageFeatures, slots: Sequence[Slot]) -> Tensor:
        """Every image's scores over its own classes, before the softmax.

        Args:
            images: as in `rank`.
            slots: one per row.

        Returns:
            [B, K] float32, -inf behind a row's last class.
        """
        rows_of: dict[Slot, list[int]] = {}
        for row, slot in enumerate(slots):
            rows_of.setdefault(slot, []).append(row)
        if len(rows_of) == 1:
            return self._of_one(images, slots[0])
        plain = [row for row, slot in enumerate(slots) if slot.is_plain]
        if len(plain) == len(slots):
            return self._gathered(images.unit_BE, slots)
        n_most = max(slot.n_classes for slot in rows_of)
        logits_BK = images.unit_BE.new_full((len(slots), n_most), -torch.inf)
        if plain:
            plain_B = sent(plain, self._backbone.device)
            own = self._gathered(images.unit_BE[plain_B], [slots[row] for row in plain])
            logits_BK[plain_B, : own.shape[1]] = own
        for slot, rows in rows_of.items():
            if not slot.is_plain:
                rows_B = sent(rows, self._backbone.device)
                logits_BK[rows_B, : slot.n_classes] = self._of_one(images.of(rows_B), slot)
        return logits_BK

    def _gathered(self, unit_BE: Tensor, slots: Sequence[Slot]) -> Tensor:
        """Rows of different plain stacks: every row's text features side by side, one batched product."""
        n_most = max(slot.n_classes for slot in slots)
        index = np.zeros((len(slots), n_most), dtype=np.int64)
        for row, slot in enumerate(slots):
            index[row, : slot.n_classes] = slot.class_rows_K
        facts = np.array([(slot.logit_scale, slot.n_classes) for slot in slots])
        scales_B, counts_B = sent(facts, self._backbone.device).unbind(dim=1)
        index_BK = sent(index, self._backbone.device)
        at_once = max(1, GATHERED_BYTES[unit_BE.device.type] // (n_most * unit_BE.shape[1] * unit_BE.element_size()))
        scaled_B1E = (scales_B.to(unit_BE.dtype).unsqueeze(1) * unit_BE).unsqueeze(1)
        parts = [
            torch.bmm(scaled_B1E[start : start + at_once], features_BKE.transpose(1, 2)).squeeze(1)
            for start in range(0, len(slots), at_once)
            for features_BKE in (self._storage.text_features(index_BK[start : start + at_once]),)
        ]
        logits_BK = parts[0] if len(parts) == 1 else torch.cat(parts)
        positions_K = torch.arange(n_most, device=logits_BK.device)
        return logits_BK.masked_fill_(positions_K >= counts_B.unsqueeze(1), -torch.inf)

    def _of_one(self, images: ImageFeatures, slot: Slot) -> Tensor:
        """Rows of one stack, whatever its head: [B, K of the stack]."""
        head, scale = slot.head, slot.logit_scale
        if isinstance(head, ConditionalHead):
            return scale * head.similarities(
                self._backbone,
                images.unit_BE,
                slot.text,
                max_text_rows=self._max_text_rows,
                on_progress=self._on_progress,
            )
        text_KF = self._storage.text_features_of(slot)
        f_BF = head.features(images.embeddings_BE) if isinstance(head, Projector) else images.unit_BE
        logits_BK = scale * f_BF @ text_KF.T
        return head.blend(logits_BK, images.embeddings_BE) if isinstance(head, ClassHead) else logits_BK
