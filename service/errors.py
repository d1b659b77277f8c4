"""The service's exceptions. Their HTTP statuses are in `service/http/problems.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ServiceError(Exception):
    """Base class.

    Args:
        message: shown to the client unless the problem table overrides it.
        code: a stable code that is more specific than the class's default.
        extra: additional members of the response body; JSON values only.
    """

    default_code: ClassVar[str] = "service_error"

    def __init_subclass__(cls, *, code: str | None = None) -> None:
        cls.default_code = code or cls.default_code

    def __init__(self, message: str, *, code: str | None = None, extra: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.extra = extra or {}


class SettingsError(ServiceError, code="settings_invalid"):
    """Invalid configuration."""


class RequestInvalidError(ServiceError, code="request_invalid"):
    """Malformed request."""


class BodyTooLargeError(RequestInvalidError, code="too_large"):
    """The request has too many bytes or images."""


class SlowBodyError(RequestInvalidError, code="slow_body"):
    """The body did not arrive in time."""


class MediaTypeError(RequestInvalidError, code="unsupported_media"):
    """Unsupported content type or content encoding."""


class UnauthorizedError(ServiceError, code="unauthorized"):
    """Missing, unknown or expired API key."""


class DeniedError(ServiceError, code="denied"):
    """The key lacks the required scope or domain."""


class ForeignRequestError(ServiceError, code="foreign_request"):
    """Without keys: the Host is not a loopback name, or the request is cross-site."""


class DomainNotLiveError(ServiceError, code="domain_not_live"):
    """The domain has no live version."""


class DomainUnavailableError(ServiceError, code="domain_unavailable"):
    """The domain's live version could not be loaded."""


class BackboneMismatchError(ServiceError, code="backbone_mismatch"):
    """The bundle was trained on another backbone; `fact` names the difference."""

    def __init__(self, *, expected: object, found: object, fact: str = "fingerprint") -> None:
        super().__init__(
            f"The bundle was trained on a backbone with {fact} {found}, but this service's backbone has {expected}.",
            extra={f"expected_{fact}": expected, f"found_{fact}": found},
        )


class DomainExistsError(ServiceError, code="domain_exists"):
    """A domain to create exists."""


class PreconditionFailedError(ServiceError, code="precondition_failed"):
    """If-Match does not match the live version's digest, or If-Bundle-Digest that of the one that was used."""


class RolloutNotFoundError(ServiceError, code="rollout_not_found"):
    """The domain has no rollout."""


class ImageRejectedError(ServiceError, code="image_undecodable"):
    """An invalid image; the other images of the request are unaffected."""


class ImageFormatError(ImageRejectedError, code="image_format"):
    """Not a JPEG, PNG or WebP image."""


class ImageTooLargeError(ImageRejectedError, code="image_bytes"):
    """The image has too many bytes or too many pixels."""


class ImagesRejectedError(ServiceError, code="images_rejected"):
    """All images of a request were rejected."""


class OverloadedError(ServiceError, code="overloaded"):
    """A queue is full or the deadline cannot be met; retry after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CapacityError(OverloadedError):
    """A budget of bytes or pixels in memory is exhausted; retry after `retry_after_s`."""


class RateLimitedError(OverloadedError, code="rate_limited"):
    """The API key's rate limit, or the client address's limit of wrong keys, is reached."""


class DeadlineExceededError(ServiceError, code="deadline_exceeded"):
    """The request's deadline passed."""


class DrainingError(ServiceError, code="draining"):
    """The process is shutting down and accepts no new requests."""


class ClientGoneError(ServiceError, code="client_gone"):
    """The client disconnected; the response is never sent."""


class InferenceFailedError(ServiceError, code="inference_failed"):
    """The forward failed for this row."""


class DeviceMemoryError(ServiceError, code="gpu_memory"):
    """Out of device memory; the other rows of the batch are unaffected."""


class DeviceLostError(InferenceFailedError, code="device_lost"):
    """The device is unusable until the process restarts."""


class ExampleNotFoundError(ServiceError, code="example_not_found"):
    """The domain has no example with one of these ids."""

    def __init__(self, message: str, *, ids: Sequence[int]) -> None:
        super().__init__(message, extra={"ids": list(ids)})
        self.ids = ids


class ExamplesDamagedError(ServiceError, code="examples_damaged"):
    """Stored examples do not match their checksums."""

    def __init__(self, message: str, *, ids: Sequence[int]) -> None:
        super().__init__(message, extra={"ids": list(ids)})


class ExamplesFullError(ServiceError, code="examples_full"):
    """The examples would exceed `limit`, a number per domain or bytes of all domains; nothing was stored."""

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class TooFewExamplesError(ServiceError, code="too_few_examples"):
    """Too few labelled examples or classes for a fit."""


class FitFailedError(ServiceError, code="fit_failed"):
    """A fit could not be computed."""


class ExamplesStaleError(ServiceError, code="examples_stale"):
    """Examples have no features for this version's image prompts."""
