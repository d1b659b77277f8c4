"""Class scores of a batch in which every row has its own domain's classes.

p(c | x) = softmax_c( s · <f(x), g_c> / T ), with temperature T = 1 unless a bundle is calibrated. Source: CLIP (arXiv
2103.00020), figure 3. Heads are in `heads.py`.

Legend: B rows, K most classes of a row, S classes of all stacks of the batch, E joint width.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.heads import ClassHead, ConditionalHead, ImageFeatures, Projector
from prompted_clip.stack import PromptStack
from prompted_clip.transfers import to_device


class Ranked(NamedTuple):
    """One image's most probable classes, best first.

    Args:
        class_ids: indices into its stack's class names.
        probabilities: 0 to 1.
        embedding_E: if requested, f(x): float32, unit norm.
    """

    class_ids: list[int]
    probabilities: list[float]
    embedding_E: NDArray[np.float32] | None = None


class Scorer:
    """Scores image features against the classes of stacks; the arguments are for conditional heads' text forwards."""

    def __init__(self, backbone: Backbone, *, max_text_rows: int, on_progress: Callable[[], None]) -> None:
        self._backbone = backbone
        self._max_text_rows = max_text_rows
        self._on_progress = on_progress

    def logits(self, images: ImageFeatures, stacks: Sequence[PromptStack]) -> Tensor:
        """Logits of images, each over its own stack's classes: [B, K] float32, -inf beyond a row's last class.

        Args:
            images: each encoded under its stack's prompts.
            stacks: device copies, one per row.
        """
        groups: dict[PromptStack | None, list[int]] = {}  # None: rows of all stacks without a head
        for row, stack in enumerate(stacks):
            groups.setdefault(None if stack.head is None else stack, []).append(row)
        if len(groups) == 1:
            return self._group_logits(images, stacks)
        n_most = max(len(stack.class_names) for stack in stacks)
        logits_BK = images.unit_BE.new_full((len(stacks), n_most), -torch.inf)
        for rows in groups.values():
            rows_B = to_device(rows, logits_BK.device)
            own_BK = self._group_logits(images.of(rows_B), [stacks[row] for row in rows])
            logits_BK[rows_B, : own_BK.shape[1]] = own_BK
        return logits_BK

    def _group_logits(self, images: ImageFeatures, stacks: Sequence[PromptStack]) -> Tensor:
        """Rows of one stack with a head, or of any stacks without."""
        stack = stacks[0]
        if stack.head is None:
            return _text_logits(images.unit_BE, stacks)
        if isinstance(stack.head, ConditionalHead):
            return stack.text_scale * stack.head.similarities(
                self._backbone, images.unit_BE, max_text_rows=self._max_text_rows, on_progress=self._on_progress
            )
        return static_logits(images, stack)


def static_logits(images: ImageFeatures, stack: PromptStack) -> Tensor:
    """Logits over the classes of one stack, whose head is not conditional: [B, K].

    Raises:
        ValueError: the head is conditional, so there are no text features.
    """
    features_KF, head = _text_features(stack), stack.head
    if isinstance(head, Projector):
        return stack.text_scale * head.features(images.embeddings_BE) @ features_KF.T
    if isinstance(head, ClassHead):
        return head.blend(stack.logit_scale * images.unit_BE @ features_KF.T, images) / stack.temperature
    return stack.text_scale * images.unit_BE @ features_KF.T


def _text_logits(unit_BE: Tensor, stacks: Sequence[PromptStack]) -> Tensor:
    """One product with the text features of all stacks, of which every row keeps its own stack's columns."""
    distinct = list(dict.fromkeys(stacks))
    features = [_text_features(stack) for stack in distinct]
    if len(distinct) == 1:
        return stacks[0].text_scale * unit_BE @ features[0].T
    counts = [len(own) for own in features]
    starts = dict(zip(distinct, accumulate(counts, initial=0), strict=False))
    facts = np.array([(starts[stack], len(stack.class_names), stack.text_scale) for stack in stacks])
    start_B1, count_B1, scale_B1 = to_device(facts, unit_BE.device).unsqueeze(2).unbind(dim=1)
    positions_K = torch.arange(max(counts), device=unit_BE.device)
    columns_BK = (start_B1.long() + positions_K).clamp_(max=sum(counts) - 1)
    similarities_BS = unit_BE @ torch.cat(features).T
    logits_BK = similarities_BS.gather(1, columns_BK).mul_(scale_B1)
    return logits_BK.masked_fill_(positions_K >= count_B1, -torch.inf)


def _text_features(stack: PromptStack) -> Tensor:
    if stack.text_features is None:
        msg = f"The stack of domain {stack.domain!r} has neither text features nor a conditional head."
        raise ValueError(msg)
    return stack.text_features
