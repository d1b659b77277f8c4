"""Rejects classify and inference requests under overload before they are parsed."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from service.access.rules import find_endpoint
from service.errors import OverloadedError
from service.http import problems
from service.http.body import timeout_of
from service.http.context import HttpContext
from service.http.middleware.request import new_request_id

logger = logging.getLogger(__name__)

CLASSIFY_LINE: Final = re.compile(
    rb"POST (?P<path>/classify(?:/(?P<domain>[a-z0-9-]{1,64}))?"
    rb"|/v2/models/(?P<model>[a-z0-9-]{1,64})(?:/versions/[1-9]\d{0,9})?/infer"
    rb"|/v1/embeddings)(?:\?(?P<query>[!-~]*))? HTTP/1\.1\r\n"
)
LENGTH_LINE: Final = re.compile(rb"\r\ncontent-length: *(\d{1,9}) *\r\n")
OTHER_LINE: Final = re.compile(
    rb"\r\n(?:transfer-encoding|expect|upgrade|origin|x-request-id|connection: *+(?!close\r|keep-alive\r))"
)
"""Headers that need more than the short response."""
CLOSE_LINE: Final = re.compile(rb"\r\nconnection: *close\r")
LOG_EVERY_S: Final = 1.0


class EarlyRefusal:
    """Answers 429 to classify requests that would be rejected anyway, before they are parsed.

    Under overload most requests are rejected. On an open connection this takes less than half of the CPU time of
    the normal path (`tests/service/http/test_early_refusal.py`). An outermost ASGI middleware would take more, since
    uvicorn has parsed the request by then. The log has the number of rejected requests once a second.
    """

    def __init__(self, context: HttpContext) -> None:
        self._context = context
        error = OverloadedError("Server overloaded: too many requests are open. Retry later.", retry_after_s=1.0)
        problem = problems.describe(error) | {"request_id": "%s"}
        self._templates = {form: _templates(*problems.encode(problem, form)) for form in ("/classify/", "/v1/", "/v2/")}
        self._n_refused = self._n_passed = 0

    def respond(self, data: bytes, headers: list[tuple[bytes, bytes]], client: str) -> tuple[bytes, bool] | None:
        """The response to `data` from an address with additional `headers`, and whether to close the connection.

        None if there is room for the request, or the data is not exactly one plain classify request.
        """
        line = CLASSIFY_LINE.match(data)
        if line is None or self._context.is_draining:
            return None
        domain = (line["domain"] or line["model"] or b"").decode()
        timeout_s = timeout_of(line["query"] or b"", self._context.settings)
        has_room = self._context.open_requests.has_room(domain, timeout_s, self._n_passed)
        if has_room and self._context.decoder.places.has_room((client, domain), 1):
            self._pass()
            return None
        end = data.find(b"\r\n\r\n")
        head = data[: end + 2].lower()
        lengths = LENGTH_LINE.findall(head)
        is_whole = end > 0 and len(lengths) == 1 and len(data) == end + 4 + int(lengths[0])
        if not is_whole or head.count(b"content-length") > 1 or OTHER_LINE.search(head):
            return None
        self._count(find_endpoint(line["path"].decode()).template)
        request_id = new_request_id().encode()
        must_close = CLOSE_LINE.search(head) is not None
        form = "/v2/" if line["model"] else "/v1/" if line["path"].startswith(b"/v1/") else "/classify/"
        template, body = self._templates[form]
        lines = [template % request_id, *(b"%s: %s\r\n" % header for header in headers)]
        if must_close:
            lines.append(b"connection: close\r\n")
        return b"".join([*lines, b"\r\n", body % request_id]), must_close

    def _pass(self) -> None:
        """Note a request that counts as open in the next iteration of the event loop."""
        if not self._n_passed:
            asyncio.get_running_loop().call_soon(self._end_iteration)
        self._n_passed += 1

    def _end_iteration(self) -> None:
        self._n_passed = 0

    def _count(self, route: str) -> None:
        metrics = self._context.metrics
        metrics.requests.labels(route, "POST", "429").inc()
        metrics.request_s.labels(route).observe(0.0)
        metrics.errors.labels(OverloadedError.default_code).inc()
        if not self._n_refused:
            asyncio.get_running_loop().call_later(LOG_EVERY_S, self._log)
        self._n_refused += 1

    def _log(self) -> None:
        logger.info("requests.rejected", extra={"n": self._n_refused, "code": OverloadedError.default_code})
        self._n_refused = 0


def _templates(body: bytes, media_type: str) -> tuple[bytes, bytes]:
    """Head and body of the response, each with `%s` for the request id; `body` has it once."""
    body = body.replace(b"%", b"%%").replace(b"%%s", b"%s")
    head = (
        f"HTTP/1.1 429 Too Many Requests\r\ncontent-type: {media_type}\r\n"
        f"content-length: {len(body % new_request_id().encode())}\r\nretry-after: 1\r\n"
        "x-content-type-options: nosniff\r\ncache-control: no-store\r\nx-request-id: %s\r\n"
    )
    return head.encode(), body
