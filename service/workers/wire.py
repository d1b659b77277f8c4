"""Every message between a web process and the device process, as types.

Messages are MessagePack arrays that msgspec checks against these types while it reads them; nothing on this wire can
name a class to be built or code to be run. Pixels never travel here: a message names the slots of shared memory that
hold them. Times are readings of the monotonic clock, which the processes of one machine share.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from service.answering import StackKind

Count = Annotated[int, Meta(ge=0)]
Headers = list[tuple[bytes, bytes]]
Sample = tuple[str, str, dict[str, str], float]
"""One number of a metric: family, sample name, labels, value."""


class WireError(Struct, frozen=True, array_like=True):
    """An exception: its class's name, its message and its attributes."""

    kind: str
    message: str
    facts: dict[str, Any]


class FoundClass(Struct, frozen=True, array_like=True, gc=False):
    """One class of an answer; see `service.answering.Found`."""

    class_id: int
    label: str
    probability: float


class RowAnswer(Struct, frozen=True, array_like=True, tag=True):
    """What one image got; see `service.answering.Answered`."""

    found: list[FoundClass]
    queued_s: float
    ran_s: float


class RowError(Struct, frozen=True, array_like=True, tag=True):
    """Why one image got nothing."""

    error: WireError


# From a web process to the device process. `call` numbers what is to be answered; a pin's number is its call's.


class Pin(Struct, frozen=True, array_like=True, tag=True):
    """Hold a domain's live version, or a numbered one, until `Unpin`; answered by `Named`.

    With a deadline, only if a single image would be let in now that is to be scored by then.
    """

    call: int
    domain: str
    version: int | None
    deadline_s: float | None = None
    priority: int = 0


class Settle(Struct, frozen=True, array_like=True, tag=True):
    """Load what a request needs of a pinned version; answered by `Named`."""

    call: int
    pin: int
    kind: StackKind
    labels: tuple[str, ...]
    request_id: str


class Score(Struct, frozen=True, array_like=True, tag=True):
    """Classify the images in these slots, which stay untouched until the answer: `Scored`."""

    call: int
    pin: int
    slots: list[Count]
    top_k: Annotated[int, Meta(ge=1)]
    deadline_s: float
    priority: int


class Forward(Struct, frozen=True, array_like=True, tag=True):
    """A whole HTTP request that the device process answers, its key checked and its body complete; see `Forwarded`."""

    call: int
    method: str
    path: str
    raw_path: bytes
    query: bytes
    scheme: str
    server: tuple[str, int | None] | None
    headers: Headers
    body: bytes
    actor: str
    request_id: str


class Abandon(Struct, frozen=True, array_like=True, tag=True):
    """Nobody waits for the answer to this call any more; it is answered all the same."""

    call: int


class Unpin(Struct, frozen=True, array_like=True, tag=True):
    """The request is over."""

    pin: int


class Counts(Struct, frozen=True, array_like=True, tag=True):
    """Everything this web process has counted since it began; also its sign of life."""

    samples: list[Sample]


class Listening(Struct, frozen=True, array_like=True, tag=True):
    """This web process takes connections."""


FromWeb = Pin | Settle | Score | Forward | Abandon | Unpin | Counts | Listening


# From the device process to a web process.


class Hello(Struct, frozen=True, array_like=True, tag=True):
    """What a web process must know to begin; JSON where the types are pydantic's."""

    settings: bytes
    keys: list[bytes]
    n_slots: int
    image_size: int
    preprocess: dict[str, Any]


class Named(Struct, frozen=True, array_like=True, tag=True):
    """The version that answers; none for a numbered one that is not settled yet."""

    call: int
    version: int | None
    digest: str | None


class Scored(Struct, frozen=True, array_like=True, tag=True):
    """One answer per slot, in order."""

    call: int
    rows: list[RowAnswer | RowError]


class Forwarded(Struct, frozen=True, array_like=True, tag=True):
    """An HTTP answer; `route` and `code` are for the web process's metrics."""

    call: int
    status: int
    headers: Headers
    body: bytes
    route: str
    code: str


class Failed(Struct, frozen=True, array_like=True, tag=True):
    """The call failed as a whole."""

    call: int
    error: WireError


class Drain(Struct, frozen=True, array_like=True, tag=True):
    """The service is about to stop: tell clients not to keep their connections."""


class Stop(Struct, frozen=True, array_like=True, tag=True):
    """Stop listening, finish what was accepted, end."""


class CountNow(Struct, frozen=True, array_like=True, tag=True):
    """Send `Counts` at once."""


Reply = Named | Scored | Forwarded | Failed
FromDevice = Hello | Reply | Drain | Stop | CountNow
