"""HTTP to one registry or hub: bounded answers, and credentials for that server alone.

Redirects are followed by hand: downloads of registries lead to storage on other hosts, which must never receive
credentials, and a server on HTTPS must not lead to plain HTTP.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import httpx

from prompt_store.errors import LimitExceededError, RemoteError
from prompt_store.remotes.address import is_loopback, printable

MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_REDIRECTS: Final = 5
TIMEOUT_S: Final = 10.0
"""For a connection, and for each part of an answer."""
MAX_ANSWER_S: Final = 300.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """A response from a URL: status, headers, and the whole body if the status is a success."""

    url: httpx.URL
    status: int
    headers: httpx.Headers
    body: bytes


class Transfer:
    """A client of one server.

    Args:
        origin: scheme, host and port of the server.
        plain_http: allow plain HTTP to other hosts than this machine, too.
        authorization: the header for this server; never sent to another one.
        log_in: answers a challenge (the header WWW-Authenticate) with a new header Authorization.
        hint: how to log in, for messages.
    """

    def __init__(
        self,
        origin: str,
        *,
        plain_http: bool = False,
        authorization: str | None = None,
        log_in: Callable[[str], str | None] | None = None,
        hint: str = "",
    ) -> None:
        self._plain_http = plain_http
        self._authorization = authorization
        self._log_in = log_in
        self._hint = hint
        self.origin = httpx.URL(origin)
        self.check(self.origin)
        headers = {"Accept-Encoding": "identity", "User-Agent": f"caspl-serve/{version('caspl-serve')}"}
        self._client = httpx.Client(timeout=TIMEOUT_S, headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check(self, url: httpx.URL, before: httpx.URL | None = None) -> None:
        """Check that a request may be sent to a URL.

        Args:
            url: absolute.
            before: the URL whose answer led to it.

        Raises:
            RemoteError: `remote_insecure`, plain HTTP that is not allowed.
        """
        if url.scheme == "https":
            return
        if before is not None and before.scheme == "https":
            message = f"{before.host} leads to {url.host} without encryption, which is refused."
            raise RemoteError(message, code="remote_insecure")
        if url.scheme != "http" or not (self._plain_http or is_loopback(url.host)):
            message = (
                f"{url.host} would be reached without encryption. Use HTTPS, or allow plain HTTP with --plain-http."
            )
            raise RemoteError(message, code="remote_insecure")

    def location(self, answer: Answer) -> httpx.URL:
        """The absolute URL in the header Location of an answer.

        Raises:
            RemoteError: `remote_failed`, it is invalid; `remote_insecure`.
        """
        try:
            url = answer.url.join(answer.headers.get("Location", ""))
        except (httpx.InvalidURL, ValueError) as error:
            raise RemoteError(f"{answer.url.host} leads to an invalid address.") from error
        self.check(url, answer.url)
        return url

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """Send a request, after a login if the server demands one.

        Args:
            method: HTTP method; redirects of GET and HEAD are followed.
            url: absolute, or a path on the server.
            headers: of the request.
            content: the body.
            max_bytes: maximum size of the answer's body.

        Raises:
            LimitExceededError: the body is larger.
            RemoteError: `remote_unreachable`, `remote_insecure`, `remote_unauthorized` or `remote_failed`.
        """
        target = self.origin.join(url)
        answer = self._follow(method, target, headers or {}, content, max_bytes)
        if answer.status == HTTPStatus.UNAUTHORIZED and self._log_in is not None and _same(answer.url, self.origin):
            self._authorization = self._log_in(answer.headers.get("WWW-Authenticate", ""))
            if self._authorization is not None:
                answer = self._follow(method, target, headers or {}, content, max_bytes)
        what = printable(target.path)
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            message = f"{answer.url.host} refuses access to {what} ({answer.status}). {self._hint}".strip()
            raise RemoteError(message, code="remote_unauthorized")
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise RemoteError(f"{answer.url.host} answers {what} with status {answer.status}. Try again later.")
        return answer

    def _follow(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes | None, max_bytes: int
    ) -> Answer:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._request(method, url, headers, content, max_bytes)
            if method not in {"GET", "HEAD"} or answer.status not in _REDIRECTS:
                return answer
            url = self.location(answer)
        raise RemoteError(f"{url.host} leads from address to address more than {MAX_REDIRECTS} times.")

    def _request(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes | None, max_bytes: int
    ) -> Answer:
        """Send one request; the body of an error is not read."""
        self.check(url)
        sent = dict(headers)
        if self._authorization is not None and _same(url, self.origin):
            sent["Authorization"] = self._authorization
        ends_s = time.monotonic() + MAX_ANSWER_S
        body = bytearray()
        try:
            with self._client.stream(method, url, headers=sent, content=content) as response:
                if response.is_success and method != "HEAD":
                    for chunk in response.iter_raw(_CHUNK_BYTES):
                        body += chunk
                        if len(body) > max_bytes:
                            raise _too_large(url, max_bytes)
                        if time.monotonic() > ends_s:
                            raise RemoteError(
                                f"{url.host} takes longer than {MAX_ANSWER_S:.0f} s.", code="remote_unreachable"
                            )
                return Answer(url, response.status_code, response.headers, bytes(body))
        except httpx.TimeoutException as error:
            message = f"{url.host} does not answer within {TIMEOUT_S:.0f} s."
            raise RemoteError(message, code="remote_unreachable") from error
        except (httpx.InvalidURL, UnicodeError) as error:  # of the resolver: a label that is empty or too long
            raise RemoteError(f"{printable(url.host)} is not a valid host.", code="remote_unreachable") from error
        except httpx.ConnectError as error:
            raise RemoteError(f"Cannot connect to {url.host}: {error}.", code="remote_unreachable") from error
        except httpx.HTTPError as error:
            message = f"The connection to {url.host} broke ({type(error).__name__}). Try again."
            raise RemoteError(message, code="remote_unreachable") from error


def _too_large(url: httpx.URL, max_bytes: int) -> LimitExceededError:
    return LimitExceededError("too_large", f"{url.host} sends more than {max_bytes} bytes.", limit=max_bytes)


def _same(one: httpx.URL, other: httpx.URL) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)
