"""Maps exceptions to HTTP problem responses (RFC 9457).

Every exception class of the service, the store and the model has a row in `TABLE`, which a test verifies. Any other
exception is a bug: the client gets a generic text with the request id, the log gets the traceback.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from prompt_store import errors as store
from prompt_store.validation import plain_message
from prompted_clip import errors as model
from service import errors as service
from service.observability.logs import request_id

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
MEMBERS: Final = ("type", "title", "status", "code", "detail", "request_id")
"""Every problem has these; `status` is an integer, the others are strings."""
INFERENCE_PATH: Final = re.compile(r"/v2(?:/|$)")
INTERNAL_DETAIL: Final = "Internal error. The server log has the details under this request id."


@dataclass(frozen=True)
class Row:
    """The problem response for a class of errors.

    Args:
        status: HTTP status.
        title: the same for every error of the class whose code is not in `TITLES`.
        detail: replaces the error's message; None shows the message.
        retry_after_s: default for `Retry-After`; the error's own value takes precedence.
    """

    status: int
    title: str
    detail: str | None = None
    retry_after_s: float | None = None


TABLE: Final[Mapping[type[Exception], Row]] = {
    service.ServiceError: Row(500, "Internal error", detail=INTERNAL_DETAIL),
    service.SettingsError: Row(500, "Invalid configuration", detail=INTERNAL_DETAIL),
    service.RequestInvalidError: Row(422, "Invalid request"),
    service.BodyTooLargeError: Row(413, "Request too large"),
    service.SlowBodyError: Row(408, "Request timeout"),
    service.MediaTypeError: Row(415, "Unsupported content type"),
    service.UnauthorizedError: Row(401, "Unauthorized"),
    service.DeniedError: Row(403, "Permission denied"),
    service.ForeignRequestError: Row(403, "Cross-origin request denied"),
    service.DomainNotLiveError: Row(404, "No live version"),
    service.DomainUnavailableError: Row(503, "Domain unavailable", retry_after_s=30),
    service.BackboneMismatchError: Row(409, "Backbone mismatch"),
    service.DomainExistsError: Row(409, "Domain exists"),
    service.PreconditionFailedError: Row(412, "Precondition failed"),
    service.RolloutNotFoundError: Row(404, "No rollout"),
    service.ImageRejectedError: Row(422, "Invalid image"),
    service.ImageFormatError: Row(415, "Unsupported image format"),
    service.ImageTooLargeError: Row(413, "Image too large"),
    service.ImagesRejectedError: Row(422, "All images rejected"),
    service.OverloadedError: Row(429, "Server overloaded", retry_after_s=1),
    service.CapacityError: Row(503, "Server overloaded", retry_after_s=1),
    service.RateLimitedError: Row(429, "Rate limit exceeded", retry_after_s=1),
    service.DeadlineExceededError: Row(504, "Deadline exceeded"),
    service.DrainingError: Row(503, "Shutting down", retry_after_s=1),
    service.ClientGoneError: Row(499, "Client closed request"),
    service.InferenceFailedError: Row(500, "Inference failed"),
    service.DeviceMemoryError: Row(503, "Out of device memory", retry_after_s=1),
    service.ExampleNotFoundError: Row(404, "Example not found"),
    service.ExamplesFullError: Row(409, "Too many examples"),
    service.TooFewExamplesError: Row(409, "Too few examples"),
    service.FitFailedError: Row(503, "Fit failed", retry_after_s=1),
    service.ExamplesStaleError: Row(409, "Examples without features"),
    service.ExamplesDamagedError: Row(409, "Damaged examples"),
    service.DeviceLostError: Row(503, "Device lost", retry_after_s=10),
    store.PromptStoreError: Row(500, "Store error", detail=INTERNAL_DETAIL),
    store.BundleInvalidError: Row(422, "Invalid bundle"),
    store.LimitExceededError: Row(413, "Bundle too large"),
    store.DigestMismatchError: Row(422, "Digest mismatch"),
    store.DomainNotFoundError: Row(404, "Domain not found"),
    store.VersionNotFoundError: Row(404, "Version not found"),
    store.VersionExistsError: Row(409, "Version already exists"),
    store.VersionLiveError: Row(409, "Version is live"),
    store.ConflictError: Row(409, "Conflicting update"),
    store.StoreReadOnlyError: Row(503, "Store not writable", retry_after_s=60),
    store.StoreUnavailableError: Row(503, "Store unavailable", retry_after_s=5),
    store.StorageFullError: Row(507, "Store full", detail="No space left in the store; nothing was changed."),
    store.StoreCorruptError: Row(
        503, "Store damaged", detail="Stored data of this domain is damaged. The operator can run `caspl store check`."
    ),
    store.SignatureError: Row(403, "Signature not accepted"),
    model.PromptedClipError: Row(500, "Model error", detail=INTERNAL_DETAIL),
    model.WeightsError: Row(500, "Backbone cannot be loaded", detail=INTERNAL_DETAIL),
    model.StackMismatchError: Row(422, "Bundle does not fit the backbone"),
    model.TextTooLongError: Row(422, "Text too long"),
}

TITLES: Final[Mapping[str, str]] = {
    "name_invalid": "Invalid domain name",
    "key_expired": "API key expired",
    "key_not_yet_valid": "API key not yet valid",
    "too_many_images": "Too many images",
    "image_truncated": "Truncated image",
    "image_animated": "Animated image",
    "image_base64": "Invalid base64",
    "image_chunks": "Too many chunks",
    "image_scans": "JPEG too complex",
    "image_aspect": "Aspect ratio too large",
    "label_invalid": "Invalid label",
    "too_many_labels": "Too many labels",
    "abstain_unsupported": "No such abstention threshold",
    "stack_unsupported": "Not supported by this bundle",
    "nothing_to_roll_back": "No earlier live version",
    "store_denied": "Store access denied",
    "clock_skew": "Clocks differ",
    "s3_unsupported": "Store without conditional writes",
    "store_busy": "Store in use by another process",
    "storage_busy": "Too many open files",
    "storage_error": "Disk error",
    "write_failed": "Write failed",
    "commit_unknown": "Commit not confirmed",
    "version_corrupt": "Version damaged",
    "rollout_running": "Rollout running",
    "signature_required": "Signature required",
    "too_many_signatures": "Too many signatures",
    "database_busy": "Example database in use",
    "database_corrupt": "Example database damaged",
}
"""Titles of errors whose code is more specific than their class."""

EXPECTED: Final = (service.ServiceError, store.PromptStoreError, model.PromptedClipError)
"""The base classes of all errors in `TABLE`."""
UNEXPECTED: Final = Row(500, "Internal error", detail=INTERNAL_DETAIL)
HTTP_CODES: Final = {400: "request_invalid", 404: "not_found", 405: "method_not_allowed"}


def row_of(error: BaseException) -> Row:
    """The row of the error's class, or of its nearest base class."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), UNEXPECTED)


def describe(error: BaseException) -> dict[str, object]:
    """The members of a problem body except the request id; also used for per-image errors."""
    row = row_of(error)
    code = "internal" if row is UNEXPECTED else getattr(error, "code", "internal")
    body: dict[str, object] = {
        "type": "about:blank",
        "title": TITLES.get(code, row.title),
        "status": row.status,
        "code": code,
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
    """The response to an error; unexpected server errors are logged with their traceback."""
    row, body = row_of(error), describe(error)
    if row.status >= HTTPStatus.INTERNAL_SERVER_ERROR and row.status not in {503, 504}:
        logger.error("request.failed", extra={"code": body["code"]}, exc_info=error)
    headers = {}
    if row.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if row.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["Connection"] = "close"  # the client does not send the rest of its body
    if (seconds := _retry_after_s(error)) is not None:
        headers["Retry-After"] = str(seconds)
    return Problem(row.status, body, headers)


def _retry_after_s(error: BaseException) -> int | None:
    """Seconds until a retry, rounded up; None if a retry does not help."""
    seconds = getattr(error, "retry_after_s", row_of(error).retry_after_s)
    return None if seconds is None else max(1, math.ceil(seconds))


class Problem(Response):
    """A problem response with the members `body` and the request id; its code goes into the ASGI scope for metrics."""

    def __init__(self, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
        self.problem = {**body, "request_id": request_id.get()}
        self.code = str(body["code"])
        super().__init__(None, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, in the form of the path."""
        scope["caspl.code"] = self.code
        self.body, self.headers["Content-Type"] = encode(self.problem, scope["path"])
        self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def encode(problem: Mapping[str, object], path: str) -> tuple[bytes, str]:
    """The body of a problem in response to a request for `path`, and its content type.

    Below `/v2` it has the form of the Open Inference Protocol, `{"error": detail}`, below `/v1` that of OpenAI's API,
    each with the remaining members except `type`, `title` and `status`.
    """
    others = {name: value for name, value in problem.items() if name not in {"type", "title", "status", "detail"}}
    if path.startswith("/v1/"):
        is_ours = int(str(problem["status"])) >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if is_ours else "invalid_request_error"
        inner = {"message": problem["detail"], "type": kind, "param": problem.get("field"), "code": problem["code"]}
        return json.dumps({**others, "error": inner}, ensure_ascii=False).encode(), "application/json"
    if INFERENCE_PATH.match(path):
        return json.dumps({"error": problem["detail"], **others}, ensure_ascii=False).encode(), "application/json"
    return json.dumps(problem, ensure_ascii=False).encode(), MEDIA_TYPE


async def on_error(_: Request, error: Exception) -> Response:
    """Handle errors listed in `TABLE`."""
    return respond(error)


async def on_invalid(_: Request, error: Exception) -> Response:
    """Handle FastAPI's validation errors; the response does not repeat the values."""
    raw = error.errors() if isinstance(error, RequestValidationError) else []
    faults = [
        {"field": ".".join(str(part) for part in fault["loc"]), "message": plain_message(fault["msg"])} for fault in raw
    ]
    detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
    return respond(service.RequestInvalidError(detail, extra={"errors": faults}))


async def on_http_error(_: Request, error: Exception) -> Response:
    """Handle the errors of the router, and of FastAPI for any exception while it reads a body."""
    if isinstance(error.__cause__, EXPECTED):
        return respond(error.__cause__)
    status = error.status_code if isinstance(error, HTTPException) else 500
    return http_problem(HTTPStatus(status), getattr(error, "headers", None) or {})


def http_problem(status: HTTPStatus, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """The response to a request for an unknown path or method, or with a body that cannot be parsed."""
    is_unparsed = status == HTTPStatus.BAD_REQUEST
    body: dict[str, object] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "code": HTTP_CODES.get(status, "http_error"),
        "detail": "The body cannot be parsed; send JSON in UTF-8."
        if is_unparsed
        else f"{status.phrase}. GET /openapi.json lists all routes.",
    }
    return Problem(status, body, headers)


OPENAPI: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "A problem (RFC 9457) with a stable `code`.",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": MEMBERS,
                    "properties": {name: {"type": "integer" if name == "status" else "string"} for name in MEMBERS},
                }
            }
        },
    }
}
"""The error response of all routes but those below `/v2`, for the OpenAPI document."""


def _error_docs(description: str, error: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    properties = {"error": error, "code": {"type": "string"}, "request_id": {"type": "string"}}
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {"default": {"description": description, "content": {"application/json": {"schema": schema}}}}


INFERENCE_OPENAPI: Final = _error_docs(
    "An error of the Open Inference Protocol, with the `code` of the problem.", {"type": "string"}
)
OPENAI_OPENAPI: Final = _error_docs(
    "An error in the form of OpenAI's API, with the `code` of the problem.",
    {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            **{name: {"type": "string"} for name in ("message", "type", "code")},
            "param": {"type": ["string", "null"]},
        },
    },
)

HANDLERS: Final[dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]] = {
    **dict.fromkeys(EXPECTED, on_error),
    RequestValidationError: on_invalid,
    HTTPException: on_http_error,
}
"""For `FastAPI(exception_handlers=...)`; unexpected errors are handled in `middleware/request.py`."""
