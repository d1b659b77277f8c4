"""The inference backend behind the classify routes: in this process, or in the device process.

A request pins a version before its body is read and scores its images once they are decoded. Imports no torch, so a
web process can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

StackKind = Literal["cascade", "boost"]


class Prediction(NamedTuple):
    """One class and its probability, 0 to 1; `class_id` is its position among the classes that were scored."""

    class_id: int
    label: str
    probability: float


class ImageResult(NamedTuple):
    """The result for one image.

    Args:
        predictions: most probable class first.
        queued_s: seconds in the queue.
        ran_s: seconds its batch took on the device.
        embedding: if requested, the unit-norm image embedding: [E] float32, little endian.
    """

    predictions: list[Prediction]
    queued_s: float
    ran_s: float
    embedding: bytes | None = None


class Scored(NamedTuple):
    """The results of one request for one domain.

    Args:
        version, digest: the version used.
        answers: an answer or an error per image.
        abstain_below: if a rate was given, the probability below which the most probable class is too uncertain.
        feature_key: with embeddings, all that they depend on: `<backbone fingerprint>/<digest of the image prompts>`.
        is_candidate: whether the version is the candidate of a rollout.
    """

    version: int
    digest: str
    answers: Sequence[ImageResult | Exception]
    abstain_below: float | None = None
    feature_key: str = ""
    is_candidate: bool = False


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How to score a request's images.

    Args:
        stack: `boost` ignores the adapting prompts.
        labels: open vocabulary; if empty, the version's own classes.
        top_k: maximum number of classes per image.
        deadline_s: monotonic time; the clock is the same in all processes of a machine.
        priority: -1 (low), 0 (normal) or 1 (high).
        request_id: for log lines of the device process.
        abstain: abstention rate, one of the version's.
        embedding: return image embeddings.
        rollout: whether a request for the live version may take part in a rollout.
    """

    stack: StackKind
    labels: tuple[str, ...]
    top_k: Annotated[int, Meta(ge=1)]
    deadline_s: float
    priority: int = 0
    request_id: str = ""
    abstain: float | None = None
    embedding: bool = False
    rollout: bool = False


class Pin(Protocol):
    """A version of a domain, and the rollout beside it, pinned for one request whatever goes live meanwhile."""

    async def score(self, pixels: Sequence[NDArray[np.uint8]], options: ScoringOptions) -> Scored:
        """Classify images, uint8 [3, H, W] each; cancel to abandon them.

        First loads a version that is pinned by number, and encodes `labels`; without images only that.

        Raises:
            DomainNotFoundError, VersionNotFoundError, StackMismatchError, BackboneMismatchError: the version is not in
                the store, or cannot run here.
            RequestInvalidError, TextTooLongError: the version does not support these options.
            OverloadedError: the queue is full, or too many other versions or label sets are waiting to be loaded.
            DrainingError: the process is shutting down.
        """

    async def spellings(self, labels: Sequence[str]) -> dict[str, str]:
        """The version's class for each label that differs from one in case or character width at most.

        Raises:
            DomainNotFoundError, VersionNotFoundError, StackMismatchError, BackboneMismatchError: see `score`.
        """


class InferenceBackend(Protocol):
    """Pins versions and admits requests."""

    def pin(
        self, domain: str, version: int | None, *, deadline_s: float, priority: int
    ) -> AbstractAsyncContextManager[Pin]:
        """Pin a domain's live version, or a numbered one, for one request.

        Entering predicts the wait and rejects a request that would be late.

        Args:
            domain: any string.
            version: None for the live one.
            deadline_s: monotonic time.
            priority: -1 (low), 0 (normal) or 1 (high).

        Raises (on entering):
            DomainNotFoundError, DomainNotLiveError, DomainUnavailableError: no live version. A numbered version is
                looked up by `score`.
            OverloadedError: the queue is full, or the deadline cannot be met.
        """
