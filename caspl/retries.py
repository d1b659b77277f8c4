"""Retries of requests, when the server is busy or the connection fails."""

import time
from typing import Final

import httpx

from caspl.errors import TransportError
from caspl.requests import Request

BUSY: Final = frozenset({429, 503})
GATEWAY_FAILED: Final = frozenset({502, 504})
"""From a proxy whose server is restarting. The server may have executed the request."""
RETRY_FOR_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 5.0
NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Attempts:
    """The attempts of one request.

    Args:
        request: the request.
        retry_for_s: time after the first failure in which another attempt may start.
    """

    def __init__(self, request: Request, retry_for_s: float) -> None:
        self._is_repeatable = request.is_repeatable or request.method == "GET"
        self._retry_for_s = retry_for_s
        self._ends_s: float | None = None
        self._pause_s = FIRST_PAUSE_S

    def pause_s(self, outcome: httpx.Response | httpx.HTTPError, *, was_reached: bool) -> float | None:
        """Seconds until the next attempt; None if there is none.

        Args:
            outcome: of the last attempt.
            was_reached: whether the server has answered this client before. If not, its address may be wrong, and a
                failed connection is not retried.
        """
        if not self._may_repeat(outcome, was_reached=was_reached):
            return None
        now_s = time.monotonic()
        if self._ends_s is None:
            self._ends_s = now_s + self._retry_for_s
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MAX_PAUSE_S)
        if isinstance(outcome, httpx.Response) and outcome.headers.get("retry-after", "").isdecimal():
            pause_s = float(outcome.headers["retry-after"])
        return pause_s if now_s + pause_s <= self._ends_s else None

    def _may_repeat(self, outcome: httpx.Response | httpx.HTTPError, *, was_reached: bool) -> bool:
        if isinstance(outcome, httpx.Response):
            return outcome.status_code in BUSY or (self._is_repeatable and outcome.status_code in GATEWAY_FAILED)
        if not was_reached or not isinstance(outcome, httpx.TransportError):
            return False
        return self._is_repeatable or isinstance(outcome, NOT_SENT)


def response_or_error(outcome: httpx.Response | httpx.HTTPError, url: httpx.URL) -> httpx.Response:
    """Return the response of the last attempt.

    Raises:
        TransportError: there is none.
    """
    if isinstance(outcome, httpx.Response):
        return outcome
    is_bare = isinstance(outcome, httpx.UnsupportedProtocol)
    detail = "the address must start with http:// or https://" if is_bare else str(outcome) or type(outcome).__name__
    raise TransportError(f"Cannot reach {url}", detail, code="server_unreachable") from outcome
