"""Class scores of a batch in which every row has its own domain's classes.

p(c | x) = softmax_c( s · <f(x), g_c> / T ), with temperature T = 1 unless a bundle is calibrated. Source: CLIP (arXiv
2103.00020), figure 3. Heads are in `heads.py`.

Legend: B rows, K most classes of a row, S classes of all stacks of the batch, E joint width.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.heads import ClassHead, ConditionalHead, ImageFeatures, Projector
from prompted_clip.stack import PromptStack
from prompted_clip.transfers import to_device

PER_STACK: Final = (Projector, ConditionalHead)
"""Heads that are computed for one stack at a time. All stacks without a head share one product, and all with class
heads another."""


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
        groups: dict[object, list[int]] = {}
        for row, stack in enumerate(stacks):
            groups.setdefault(stack if isinstance(stack.head, PER_STACK) else type(stack.head), []).append(row)
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
        """Rows of one stack, or of any stacks without a head, or of any with class heads."""
        stack = stacks[0]
        if isinstance(stack.head, ConditionalHead):
            return stack.text_scale * stack.head.similarities(
                self._backbone, images.unit_BE, max_text_rows=self._max_text_rows, on_progress=self._on_progress
            )
        return static_logits(images, stack) if stacks.count(stack) == len(stacks) else _mixed_logits(images, stacks)


def static_logits(images: ImageFeatures, stack: PromptStack) -> Tensor:
    """Logits over the classes of one stack, whose head is not conditional: [B, K].

    Raises:
        ValueError: no text features, as with a conditional head.
    """
    features_KF, head = _text_features(stack), stack.head
    if isinstance(head, Projector):
        return stack.text_scale * head.features(images.embeddings_BE) @ features_KF.T
    if isinstance(head, ClassHead):
        return head.blend(stack.logit_scale * images.unit_BE @ features_KF.T, images) / stack.temperature
    return stack.text_scale * images.unit_BE @ features_KF.T


def _mixed_logits(images: ImageFeatures, stacks: Sequence[PromptStack]) -> Tensor:
    """One product with the weights of all stacks, of which every row keeps its own stack's columns."""
    distinct = list(dict.fromkeys(stacks))
    counts = [len(stack.class_names) for stack in distinct]
    starts = accumulate(counts, initial=0)
    facts_of = {
        stack: (start, len(stack.class_names), *_factors(stack)) for stack, start in zip(distinct, starts, strict=False)
    }
    facts = np.array([facts_of[stack] for stack in stacks])
    start_B1, count_B1, of_text_B1, of_head_B1 = to_device(facts, images.unit_BE.device).unsqueeze(2).unbind(dim=1)
    positions_K = torch.arange(max(counts), device=images.unit_BE.device)
    columns_BK = (start_B1.long() + positions_K).clamp_(max=sum(counts) - 1)
    text_BS = images.unit_BE @ torch.cat([_text_features(stack) for stack in distinct]).T
    logits_BK = text_BS.gather(1, columns_BK).mul_(of_text_B1)
    heads = [stack.head for stack in distinct if isinstance(stack.head, ClassHead)]
    if heads:
        head_BS = torch.addmm(
            torch.cat([head.bias_K for head in heads]),
            _head_inputs(images, stacks),
            torch.cat([head.weight_KE for head in heads]).T,
        )
        logits_BK += head_BS.gather(1, columns_BK).mul_(of_head_B1)
    return logits_BK.masked_fill_(positions_K >= count_B1, -torch.inf)


def _factors(stack: PromptStack) -> tuple[float, float]:
    """The factors of cosine similarities and of a class head's outputs in a stack's logits."""
    share = stack.head.share if isinstance(stack.head, ClassHead) else 0.0
    return (1 - share) * stack.text_scale, share / stack.temperature


def _head_inputs(images: ImageFeatures, stacks: Sequence[PromptStack]) -> Tensor:
    """The input of each row's class head: [B, E]."""
    read_unit = [isinstance(stack.head, ClassHead) and stack.head.reads_unit for stack in stacks]
    if all(read_unit) or not any(read_unit):
        return images.unit_BE if read_unit[0] else images.embeddings_BE
    return torch.where(to_device(read_unit, images.unit_BE.device).unsqueeze(1), images.unit_BE, images.embeddings_BE)


def _text_features(stack: PromptStack) -> Tensor:
    if stack.text_features is None:
        raise ValueError(f"The stack of domain {stack.domain!r} has no text features.")
    return stack.text_features
