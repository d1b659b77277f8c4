"""Errors become HTTP here and nowhere else: one table, one body (RFC 9457).

Every exception class of the service, the store and the model has its row; a test proves it. An exception without a row
is a bug: the caller sees a fixed text and a request id, the log sees the traceback.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from prompt_store import errors as store
from prompted_clip import errors as model
from service import errors as service
from service.observability.logs import request_id

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
INTERNAL_DETAIL: Final = "Something went wrong here; the log holds the details under this request id."


@dataclass(frozen=True)
class Row:
    """What a class of errors looks like from outside.

    Args:
        status: HTTP status.
        title: one line for people, the same for every error of the class.
        code: overrides the error's own code.
        detail: shown instead of the error's message; None shows the message.
        retry_after_s: when to come back, unless the error knows better.
    """

    status: int
    title: str
    code: str | None = None
    detail: str | None = None
    retry_after_s: float | None = None


TABLE: Final[Mapping[type[Exception], Row]] = {
    service.ServiceError: Row(500, "Internal error", detail=INTERNAL_DETAIL),
    service.SettingsError: Row(500, "The service is configured wrongly", detail=INTERNAL_DETAIL),
    service.RequestInvalidError: Row(422, "The request cannot be understood"),
    service.BodyTooLargeError: Row(413, "The request is too large"),
    service.SlowBodyError: Row(408, "The body did not arrive in time"),
    service.MediaTypeError: Row(415, "Unsupported content type"),
    service.UnauthorizedError: Row(401, "An API key is needed"),
    service.DeniedError: Row(403, "The API key may not do this"),
    service.ForeignRequestError: Row(403, "Only for this machine's own requests"),
    service.DomainNotLiveError: Row(404, "No live version"),
    service.DomainUnavailableError: Row(503, "The domain cannot answer", retry_after_s=30),
    service.BackboneMismatchError: Row(409, "Made for another backbone"),
    service.PreconditionFailedError: Row(412, "The live version is another one"),
    service.ImageRejectedError: Row(422, "The image cannot be used"),
    service.ImageFormatError: Row(415, "Not a supported image format"),
    service.ImageTooLargeError: Row(413, "The image is too large"),
    service.ImagesRejectedError: Row(422, "None of the images can be used"),
    service.OverloadedError: Row(429, "Too much work is waiting", retry_after_s=1),
    service.DeadlineExceededError: Row(504, "The deadline passed"),
    service.DrainingError: Row(503, "The service is stopping", retry_after_s=1),
    service.ClientGoneError: Row(499, "The client closed the connection"),
    service.InferenceFailedError: Row(500, "The model failed"),
    service.DeviceLostError: Row(503, "The device failed", retry_after_s=10),
    store.PromptStoreError: Row(500, "The store failed", detail=INTERNAL_DETAIL),
    store.BundleInvalidError: Row(422, "The bundle breaks a rule"),
    store.LimitExceededError: Row(413, "The bundle is too large"),
    store.DigestMismatchError: Row(422, "The bundle is not what was announced"),
    store.DomainNotFoundError: Row(404, "No such domain"),
    store.VersionNotFoundError: Row(404, "No such version"),
    store.VersionExistsError: Row(409, "Already there as an older version"),
    store.VersionLiveError: Row(409, "The version is live"),
    store.ConflictError: Row(409, "Somebody else was faster"),
    store.StoreReadOnlyError: Row(
        503,
        "The store cannot be written",
        detail="Nothing can be stored right now; classification goes on. Send the same bytes again later.",
        retry_after_s=60,
    ),
    store.StorageFullError: Row(507, "The store is full", detail="There is no room left; nothing was changed."),
    store.StoreCorruptError: Row(
        500, "The store is damaged", detail="What is stored is not what was written; the operator must look at it."
    ),
    model.PromptedClipError: Row(500, "The model failed", detail=INTERNAL_DETAIL),
    model.WeightsError: Row(500, "The backbone cannot be loaded", detail=INTERNAL_DETAIL),
    model.StackMismatchError: Row(422, "The bundle does not fit the backbone"),
    model.TextTooLongError: Row(422, "A text is too long"),
}

EXPECTED: Final = (service.ServiceError, store.PromptStoreError, model.PromptedClipError)
"""Above every class of the table: what is answered, and no bug."""
UNEXPECTED: Final = Row(500, "Internal error", code="internal", detail=INTERNAL_DETAIL)
HTTP_CODES: Final = {400: "request_invalid", 404: "not_found", 405: "method_not_allowed"}


def row_of(error: BaseException) -> Row:
    """The row of an error: its class's, or that of the nearest class above."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), UNEXPECTED)


def describe(error: BaseException) -> dict[str, object]:
    """The error as the members of a problem body, without request id; also used for one image among several."""
    row = row_of(error)
    body: dict[str, object] = {
        "type": "about:blank",
        "title": row.title,
        "status": row.status,
        "code": row.code or getattr(error, "code", "internal"),
        "detail": row.detail if row.detail is not None else str(error),
    }
    if isinstance(error, service.ServiceError):
        body |= error.extra
    if (seconds := _retry_after_s(error)) is not None:
        body["retry_after_s"] = seconds
    for name in ("field", "limit", "version"):
        if (value := getattr(error, name, None)) is not None:
            body[name] = value
    return body


def respond(error: BaseException) -> Response:
    """The answer to an error, logged according to how bad it is."""
    row, body = row_of(error), describe(error)
    if row.status >= HTTPStatus.INTERNAL_SERVER_ERROR and row.status not in {503, 504}:
        logger.error("request.failed", extra={"code": body["code"]}, exc_info=error)
    headers = {}
    if row.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if (seconds := _retry_after_s(error)) is not None:
        headers["Retry-After"] = str(seconds)
    return Problem(row.status, body, headers)


def _retry_after_s(error: BaseException) -> int | None:
    """Whole seconds after which to try again, if that may help."""
    seconds = getattr(error, "retry_after_s", row_of(error).retry_after_s)
    return None if seconds is None else max(1, math.ceil(seconds))


class Problem(Response):
    """A problem answer with the request id; leaves its code where the metrics find it.

    Args:
        status: HTTP status.
        body: the problem's members; `code` among them.
        headers: further headers.
    """

    media_type = MEDIA_TYPE

    def __init__(self, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
        content = json.dumps({**body, "request_id": request_id.get()}, ensure_ascii=False)
        super().__init__(content, status, headers=dict(headers))
        self.code = str(body["code"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope["caspl.code"] = self.code
        await super().__call__(scope, receive, send)


async def on_error(_: Request, error: Exception) -> Response:
    """For errors with a row."""
    return respond(error)


async def on_invalid(_: Request, error: Exception) -> Response:
    """Path and query values that FastAPI's validation refuses; values are not repeated."""
    raw = error.errors() if isinstance(error, RequestValidationError) else []
    faults = [{"field": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]} for fault in raw]
    body: dict[str, object] = {
        "type": "about:blank",
        "title": "The request cannot be understood",
        "status": 422,
        "code": "request_invalid",
        "detail": "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults),
        "errors": faults,
    }
    return Problem(422, body, {})


async def on_http_error(_: Request, error: Exception) -> Response:
    """What the router itself answers: no such path, no such method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    phrase = HTTPStatus(status).phrase
    body: dict[str, object] = {
        "type": "about:blank",
        "title": phrase,
        "status": status,
        "code": HTTP_CODES.get(status, "http_error"),
        "detail": f"{phrase}: GET /openapi.json lists what this service answers.",
    }
    return Problem(status, body, getattr(error, "headers", None) or {})


OPENAPI: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "A problem (RFC 9457) with a stable `code`.",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "code", "detail", "request_id"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "code": {"type": "string"},
                        "detail": {"type": "string"},
                        "request_id": {"type": "string"},
                    },
                }
            }
        },
    }
}
"""How every route's failures look, for the OpenAPI document."""

HANDLERS: Final[dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]] = {
    **dict.fromkeys(EXPECTED, on_error),
    RequestValidationError: on_invalid,
    HTTPException: on_http_error,
}
"""For `FastAPI(exception_handlers=...)`; unexpected errors are caught one level further out, in `middleware.py`."""
