"""Errors of the public API: `CasplError` and its subclasses.

`Classifier` also raises `prompt_store.errors.PromptStoreError` for bundle files and
`prompted_clip.errors.PromptedClipError` for backbones and bundles that do not fit together.
"""

from collections.abc import Mapping
from typing import Any


class CasplError(Exception):
    """Base class.

    Attributes:
        title: one line, the same for every error of a kind.
        detail: this error's own explanation; may be empty.
        code: stable identifier for programs, such as `domain_not_found`.
        status: HTTP status, None if the error did not come from a server.
        request_id: the server's identifier of the request, None likewise.
    """

    def __init__(
        self, title: str, detail: str = "", *, code: str, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.title = title
        self.detail = detail
        self.code = code
        self.status = status
        self.request_id = request_id


class TransportError(CasplError):
    """No connection, no answer in time, or an answer that is not from CasPL Serve."""


class ImageError(CasplError):
    """One image cannot be decoded or is not accepted; its neighbours are unaffected."""


class InvalidRequestError(CasplError):
    """A value or a bundle is not accepted."""


class AccessError(CasplError):
    """The API key is missing, unknown or lacks the scope."""


class NotFoundError(CasplError):
    """No such domain, version or example."""


class ConflictError(CasplError):
    """Another version is live or backbone served, the domain exists, or its examples are too few or too many."""


class OverloadedError(CasplError):
    """The server is overloaded or restarting; retries did not help."""


class ServerError(CasplError):
    """The server failed."""


class MeasurementsError(CasplError):
    """Measurements for `caspl plan` cannot be taken or used."""

    def __init__(self, detail: str) -> None:
        super().__init__("Measurements cannot be used", detail, code="measurements_invalid")


class ImpossibleError(CasplError):
    """No number of servers meets the objective of `caspl plan`."""

    def __init__(self, detail: str) -> None:
        super().__init__("Impossible objective", detail, code="objective_impossible")


_CLASSES: Mapping[int, type[CasplError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    429: OverloadedError,
    503: OverloadedError,
}


def from_problem(problem: Mapping[str, Any], status: int) -> CasplError:
    """The error that an RFC 9457 problem body describes.

    Args:
        problem: the body; missing members are tolerated, as a proxy may have written it.
        status: HTTP status of the response.
    """
    code = str(problem.get("code", "http_error"))
    kind = _CLASSES.get(status, ServerError if status >= 500 else InvalidRequestError)
    return (ImageError if code.startswith("image_") else kind)(
        str(problem.get("title", f"HTTP {status}")),
        str(problem.get("detail", "")),
        code=code,
        status=status,
        request_id=problem.get("request_id"),
    )
