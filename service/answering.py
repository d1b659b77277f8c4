"""What a classify request asks of the side that has the device, as one narrow protocol.

A request *pins* a version first, *settles* what exactly is asked of it once its body is there, and has its pixels
*scored*. Whether the device is in this process or in another one, the route cannot tell. Knows no HTTP and no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceError
from service.scheduler.fair_queue import Priority

StackKind = Literal["cascade", "boost"]
Urgency = Literal["high", "normal", "low"]
PRIORITIES: Final[dict[Urgency, Priority]] = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}
"""What the batcher calls them."""


class Found(Protocol):
    """One class and its probability, 0 to 1."""

    @property
    def class_id(self) -> int:
        """Position among the classes that were asked for."""

    @property
    def label(self) -> str:
        """The class's name."""

    @property
    def probability(self) -> float:
        """From 0 to 1."""


@dataclass(frozen=True)
class Answered:
    """What one image got.

    Args:
        found: its classes, most probable first.
        queued_s: seconds it waited for the device.
        ran_s: seconds its batch took.
    """

    found: Sequence[Found]
    queued_s: float
    ran_s: float


@dataclass(frozen=True)
class Served:
    """The version that a request's answer comes from and names."""

    domain: str
    version: int
    digest: str


@dataclass(frozen=True)
class Wanted:
    """How a request's images are to be scored.

    Args:
        top_k: most classes per image.
        deadline_s: reading of the monotonic clock, which all processes of a machine share.
        priority: rows with a larger one go first.
    """

    top_k: int
    deadline_s: float
    priority: int = 0


class Pin(Protocol):
    """A version that one request holds until its answer is out, whatever goes live meanwhile."""

    async def settle(self, kind: StackKind, labels: tuple[str, ...]) -> Served:
        """Load what the request needs and is not loaded yet; may take long, may be cancelled.

        Args:
            kind: `boost` leaves the adapting prompts out.
            labels: open vocabulary; empty takes the version's own classes.

        Raises:
            DomainNotFoundError, VersionNotFoundError, StackMismatchError, BackboneMismatchError: the version that is
                asked for is not there, or cannot run here.
            RequestInvalidError, TextTooLongError: the version cannot do what is asked.
            OverloadedError: too many others wait to be loaded.
        """

    def check(self, n_images: int, wanted: Wanted) -> None:
        """See whether so many images may be scored before they are decoded in vain.

        Where it cannot know it says yes.

        Raises:
            OverloadedError: `score` would raise it now.
        """

    async def score(self, pixels: Sequence[NDArray[np.uint8]], wanted: Wanted) -> list[Answered | ServiceError]:
        """Classify images, uint8 [3, H, W] each, with what was settled; cancel to abandon them.

        Returns:
            An outcome, or the reason why there is none, per image.

        Raises:
            OverloadedError: they do not fit in the queue or would be late; none of them entered.
            DrainingError: this process takes no new work.
        """


class Answerer(Protocol):
    """The side that has the device, as far as a classify request knows it."""

    def pin(self, domain: str, version: int | None, wanted: Wanted | None = None) -> AbstractAsyncContextManager[Pin]:
        """Hold a domain's live version, or a numbered one, for one request.

        Args:
            domain: who is asked.
            version: None for the live one.
            wanted: how a single image is to be scored at least, if that is known already.

        Raises (on entering):
            DomainNotFoundError, DomainNotLiveError, DomainUnavailableError: nothing is live there. A numbered version
                is looked up by `settle`.
            OverloadedError: a single image would be refused now, and `check` could not know.
        """

    def check(self, domain: str, wanted: Wanted) -> None:
        """See whether a single image of a domain might be scored, before anything else is looked at.

        Where it cannot know it says yes.

        Raises:
            OverloadedError: it would be refused now.
        """
