"""HTTP requests as values, and checks of their responses.

An operation of the clients is a generator: it yields requests and receives responses. It does no network I/O, so the
synchronous and the asynchronous client share it.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from caspl.errors import TransportError, from_problem

TOO_LARGE: Final = 413
BYTES_PER_PART: Final = 64 * 1024
"""Of a body whose progress is reported."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """An HTTP request. The operation receives its `httpx.Response`.

    Attributes:
        options: httpx's.
        is_repeatable: whether it has the same effect if the server executes it twice, as when the connection breaks
            before the response arrives. A GET always is.
        on_sent: called with the number of bytes of `options["content"]` sent so far; a retry begins again.
    """

    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    is_repeatable: bool = False
    on_sent: Callable[[int], None] | None = None

    def built_by(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request for one attempt of a client."""
        built = client.build_request(self.method, self.path, **self.options)
        if self.on_sent is not None:
            built.stream = _CountedBody(self.options["content"], self.on_sent)
        return built


class _CountedBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that reports its progress."""

    def __init__(self, data: bytes, on_sent: Callable[[int], None]) -> None:
        self._data = data
        self._on_sent = on_sent

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), BYTES_PER_PART):
            part = self._data[start : start + BYTES_PER_PART]
            yield part
            self._on_sent(start + len(part))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


@dataclass(frozen=True)
class Concurrently:
    """Independent operations, of which a client runs several at a time. The operation receives their results."""

    operations: Sequence["Operation[Any]"]


Operation: TypeAlias = Generator[Request | Concurrently, Any, T]


@dataclass(frozen=True)
class Step:
    """The next requests of an operation; None at its end, with its result."""

    next: Request | Concurrently | None
    result: Any = None


def advance(operation: Operation[Any], reply: httpx.Response | list[Any] | None) -> Step:
    """Run an operation to its next step, with the reply to the last one."""
    try:
        return Step(next(operation) if reply is None else operation.send(reply))
    except StopIteration as end:
        return Step(None, end.value)


def domain_path(domain: str, *rest: str) -> str:
    """The path of a domain, or of a resource below it."""
    return "/".join(["/domains", quote(domain, safe=""), *rest])


def chunks(parts: Sequence[T], sizes: Sequence[int], max_parts: int, max_bytes: int) -> Iterator[Sequence[T]]:
    """Split parts into requests within the limits; a part larger than the limit is sent alone."""
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and (index - start == max_parts or total + size > max_bytes):
            yield parts[start:index]
            start, total = index, 0
        total += size
    if parts:
        yield parts[start:]


def response_body(response: httpx.Response, member: str) -> dict[str, Any]:
    """The JSON object of a response.

    Raises:
        TransportError: a successful response without this member.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and not (isinstance(body, dict) and member in body):
        detail = f"{response.url} is not a CasPL Serve response."
        raise TransportError("Unexpected response", detail, code="not_caspl")
    return body if isinstance(body, dict) else {}


def accepted(response: httpx.Response, member: str) -> dict[str, Any]:
    """The same, of a response that must be successful.

    Raises:
        CasplError: it is not; or as `response_body`.
    """
    body = response_body(response, member)
    if not response.is_success:
        raise from_problem(body, response.status_code)
    return body
