"""Receiving a request body within limits of size, time and rate, and within the memory budget of all requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from service.access.rules import Endpoint
from service.errors import BodyTooLargeError, MediaTypeError, SlowBodyError
from service.http.context import HttpContext
from service.scheduler.budget import Budget
from service.settings import Settings

RATE_WINDOW_S: Final = 5.0
"""A body must keep its minimum rate in each window of this length, so a stalled one is noticed within two."""
IMAGES: Final = frozenset(
    {
        "/classify/{domain}",
        "/classify",
        "/domains/{domain}/examples",
        "/v1/embeddings",
        "/v2/models/{domain}/infer",
        "/v2/models/{domain}/versions/{version}/infer",
    }
)
"""The routes whose POST has images, which are classified or added to a domain's examples."""
BUNDLES: Final = "/domains/{domain}/versions"
MAX_JSON_BYTES: Final = 256 * 1024
"""For bodies without images or bundles: more than 10,000 ids, or 5,000 class names."""
TIMEOUT: Final = re.compile(rb"(?:^|&)timeout_ms=(\d{1,9})(?=&|$)")


class LimitedBody:
    """The body of one request. Until `release` its bytes are in the budget, and a request with images counts as open.

    It counts as open once its body is complete, so slow clients do not use up the places of the others. Most
    requests beyond the limit are rejected earlier, by `EarlyRefusal`.

    Args:
        scope: the request, with its `caspl.tenant`; its announced length is checked at once.
        receive: the ASGI channel.
        endpoint: its route, which supports its method.
        context: settings, open requests and decoder.
        budget: bytes in memory, shared between tenants.
        count_bytes: called with the number of bytes of each part.

    Attributes:
        n_bytes: received so far.

    Raises:
        OverloadedError: too many requests with images are open, or too many images are being decoded.
        MediaTypeError: a compressed body.
        BodyTooLargeError, CapacityError: the announced length exceeds the limit, or the rest of the budget.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        endpoint: Endpoint,
        context: HttpContext,
        budget: Budget,
        count_bytes: Callable[[int], None] | None = None,
    ) -> None:
        settings, headers = context.settings, Headers(scope=scope)
        self._tenant: tuple[str, str] = scope["caspl.tenant"]
        has_images = scope["method"] == "POST" and endpoint.template in IMAGES
        self._open_requests = context.open_requests if has_images else None
        self._timeout_s = timeout_of(scope["query_string"], settings)
        if self._open_requests:
            self._open_requests.check(self._tenant[1], self._timeout_s)
            context.decoder.places.check(self._tenant, 1)
        self._receive, self._budget, self._count_bytes = receive, budget, count_bytes
        self._limit = body_limit(scope["method"], endpoint.template, settings)
        self._min_bytes, self._max_body_s = settings.min_body_rate * RATE_WINDOW_S, settings.max_body_s
        self.n_bytes = self._n_in_window = 0
        self._is_complete = self._is_open = False
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise MediaTypeError("Compressed bodies are not supported. Send the body without Content-Encoding.")
        announced = headers.get("content-length", "")
        if announced.isdecimal():
            if int(announced) > self._limit:
                raise self._too_large()
            budget.check(self._tenant, int(announced))
        self._loop = asyncio.get_running_loop()
        self._end_s = self._loop.time() + settings.max_body_s
        self._timer = self._loop.call_later(RATE_WINDOW_S, self._end_window)
        self._waiting: asyncio.Timeout | None = None

    async def receive(self) -> Message:
        """Receive the next part; after the last one, the channel's next message.

        Raises:
            BodyTooLargeError, SlowBodyError, CapacityError: beyond a limit.
            OverloadedError: the body is complete, but too many requests with images are open.
        """
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end_s) as self._waiting:
                message = await self._receive()
        except TimeoutError as error:
            raise self._too_slow() from error
        finally:
            self._waiting = None
        if message["type"] == "http.request":
            self._count(len(message.get("body", b"")), is_last=not message.get("more_body", False))
        return message

    def release(self, *, is_answered: bool) -> None:
        """Give the bytes back to the budget, and close the request."""
        self._timer.cancel()
        self._budget.release(self._tenant, self.n_bytes)
        if self._open_requests and self._is_open:
            self._open_requests.close(self._tenant[1], is_answered=is_answered)

    def _too_slow(self) -> SlowBodyError:
        if self._loop.time() >= self._end_s:
            return SlowBodyError(
                f"The body did not arrive within {self._max_body_s:g} s. Send less, or use a faster connection."
            )
        return SlowBodyError(
            f"Expected at least {self._min_bytes:g} bytes of the body in {RATE_WINDOW_S:g} s, received "
            f"{self._n_in_window}. Send it without pauses, or use a faster connection."
        )

    def _end_window(self) -> None:
        """Fail if too little arrived while the reader was waiting; otherwise start the next window."""
        if self._waiting and self._n_in_window < self._min_bytes:
            if not self._waiting.expired():
                self._waiting.reschedule(self._loop.time())
        else:
            self._n_in_window = 0
            self._timer = self._loop.call_later(RATE_WINDOW_S, self._end_window)

    def _count(self, n_new: int, *, is_last: bool) -> None:
        if n_new:
            if self._count_bytes:
                self._count_bytes(n_new)
            if self.n_bytes + n_new > self._limit:
                raise self._too_large()
            self._budget.reserve(self._tenant, n_new)
            self.n_bytes += n_new
            self._n_in_window += n_new
        if is_last:
            self._is_complete = True
            self._timer.cancel()
            if self._open_requests:
                self._open_requests.open(self._tenant[1], self._timeout_s)
                self._is_open = True

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The body is larger than {self._limit} bytes, the limit of this route. Send less in one request.",
            extra={"limit": self._limit},
        )


def body_limit(method: str, template: str, settings: Settings) -> int:
    """Most bytes in the body of a request to a route."""
    if method != "POST":
        return MAX_JSON_BYTES
    if template in IMAGES:
        return settings.max_request_bytes
    return settings.max_bundle_bytes if template == BUNDLES else MAX_JSON_BYTES


def tenant_of(scope: Scope, endpoint: Endpoint) -> tuple[str, str]:
    """The client and the domain of a request: budgets are shared between these pairs.

    The client is the key's id, or without keys the address. Only requests with images for one domain have a domain:
    `/classify` is for several, and an upload may name any.
    """
    client = scope.get("caspl.actor") or (scope.get("client") or ("",))[0]
    return client, (endpoint.domain or "") if endpoint.template in IMAGES else ""


def timeout_of(query: bytes, settings: Settings) -> float:
    """The timeout of a request with images in seconds, from its raw query."""
    found = TIMEOUT.search(query)
    return min(int(found[1]) / 1000, settings.max_timeout_s) if found else settings.default_timeout_s


def media_type_of(request: Request) -> str:
    """The content type without parameters."""
    return request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()


async def read_body(request: Request) -> bytes:
    """The whole body in one piece; one body at a time is twice in memory, while its parts are joined."""
    # glibc may copy a buffer whenever it grows, up to 32 MiB on the event loop; unfinished bodies grow side by side.
    return b"".join([part async for part in request.stream()])
