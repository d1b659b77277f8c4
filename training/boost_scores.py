"""Scores of boosting on held-out images: agreement with the teacher, and accuracy where labels exist.

Legend: B images, C/H/W image, K classes, N held-out images.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from training.data.views import Views

_BATCH_ROWS: Final = 64


class HeldOutScores:
    """Compares predicted classes on held-out images with the teacher's, and with labels if given.

    Args:
        views: the held-out images, preprocessed as in serving.
        labels: class index of each image, or None.
        teacher_logits: the teacher's class scores for uint8 images.
    """

    def __init__(self, views: Views, labels: Sequence[int] | None, teacher_logits: Callable[[Tensor], Tensor]) -> None:
        self._views = views
        self._labels_N = None if labels is None else torch.tensor(labels)
        self._teacher_logits = teacher_logits

    def of(self, logits: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Scores of a model, as fractions: `agreement` with the teacher, and `accuracy` if there are labels.

        Args:
            logits: maps uint8 images [B, 3, H, W] to class scores [B, K].
        """
        predicted_N = self._predict(logits)
        scores = {"agreement": _share_equal(predicted_N, self._teacher_classes)}
        return scores if self._labels_N is None else scores | {"accuracy": _share_equal(predicted_N, self._labels_N)}

    @cached_property
    def _teacher_classes(self) -> Tensor:
        """The classes that the teacher predicts, [N]."""
        return self._predict(self._teacher_logits)

    @torch.no_grad()
    def _predict(self, logits: Callable[[Tensor], Tensor]) -> Tensor:
        blocks = [range(at, min(at + _BATCH_ROWS, len(self._views))) for at in range(0, len(self._views), _BATCH_ROWS)]
        return torch.cat([logits(self._views.load(block, 0)).argmax(dim=1).cpu() for block in blocks])


def joint_scores(by_domain: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores over domains: each measure's mean, in which every domain counts equally, then those of each domain.

    A measure that not all domains have is left out; a single domain's scores are returned as they are.
    """
    domains = list(by_domain.values())
    if len(domains) == 1:
        return dict(domains[0])
    measures = [name for name in domains[0] if all(name in scores for scores in domains)]
    means = {name: sum(scores[name] for scores in domains) / len(domains) for name in measures}
    each = {f"{name}_{domain}": scores[name] for domain, scores in by_domain.items() for name in measures}
    return means | each


def _share_equal(one_N: Tensor, other_N: Tensor) -> float:
    return (one_N == other_N).float().mean().item()
