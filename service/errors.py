"""The service's exceptions. Their HTTP statuses are in `service/http/problems.py`.

ServiceError
├── SettingsError                invalid configuration: unknown variable, missing keys, missing demo files
├── RequestInvalidError          malformed request
│   ├── BodyTooLargeError        too many bytes or images
│   ├── SlowBodyError            the body did not arrive in time
│   └── MediaTypeError           unsupported content type or encoding
├── UnauthorizedError            missing or unknown API key
├── DeniedError                  the key lacks the scope or the domain
├── ForeignRequestError          without keys: a foreign Host or a cross-site request
├── DomainNotLiveError           the domain has no live version
├── DomainUnavailableError       the live version could not be loaded
├── BackboneMismatchError        a bundle for other weights
├── PreconditionFailedError      If-Match does not match the live version
├── ImageRejectedError           an invalid image
│   ├── ImageFormatError         not JPEG, PNG or WebP
│   └── ImageTooLargeError       too many bytes or pixels
├── ImagesRejectedError          all images of a request were rejected
├── OverloadedError              a queue is full, or the deadline cannot be met
├── DeadlineExceededError        the deadline passed
├── DrainingError                the process is shutting down
├── ClientGoneError              the client disconnected
└── InferenceFailedError         the forward failed
    └── DeviceLostError          the device is unusable until a restart
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Base class.

    Args:
        message: shown to the client unless the problem table overrides it.
        code: a stable code that is more specific than the class's default.
        extra: additional members of the response body; JSON values only.
    """

    default_code: ClassVar[str] = "service_error"

    def __init__(self, message: str, *, code: str | None = None, extra: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.extra = extra or {}


class SettingsError(ServiceError):
    """Invalid configuration."""

    default_code = "settings_invalid"


class RequestInvalidError(ServiceError):
    """Malformed request."""

    default_code = "request_invalid"


class BodyTooLargeError(RequestInvalidError):
    """The request has too many bytes or images."""

    default_code = "too_large"


class SlowBodyError(RequestInvalidError):
    """The body did not arrive in time."""

    default_code = "slow_body"


class MediaTypeError(RequestInvalidError):
    """Unsupported content type or content encoding."""

    default_code = "unsupported_media"


class UnauthorizedError(ServiceError):
    """Missing or unknown API key."""

    default_code = "unauthorized"


class DeniedError(ServiceError):
    """The key lacks the required scope or domain."""

    default_code = "denied"


class ForeignRequestError(ServiceError):
    """Without keys: the Host is not a loopback name, or the request is cross-site."""

    default_code = "foreign_request"


class DomainNotLiveError(ServiceError):
    """The domain has no live version."""

    default_code = "domain_not_live"


class DomainUnavailableError(ServiceError):
    """The domain's live version could not be loaded."""

    default_code = "domain_unavailable"


class BackboneMismatchError(ServiceError):
    """The bundle was trained on another backbone."""

    default_code = "backbone_mismatch"

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(
            f"The bundle was trained on backbone {found}, but this service runs {expected}.",
            extra={"expected_fingerprint": expected, "found_fingerprint": found},
        )


class PreconditionFailedError(ServiceError):
    """If-Match does not match the live version's digest."""

    default_code = "precondition_failed"


class ImageRejectedError(ServiceError):
    """An invalid image; the other images of the request are unaffected."""

    default_code = "image_undecodable"


class ImageFormatError(ImageRejectedError):
    """Not a JPEG, PNG or WebP image."""

    default_code = "image_format"


class ImageTooLargeError(ImageRejectedError):
    """The image has too many bytes or too many pixels."""

    default_code = "image_bytes"


class ImagesRejectedError(ServiceError):
    """All images of a request were rejected."""

    default_code = "images_rejected"


class OverloadedError(ServiceError):
    """A queue is full or the deadline cannot be met; retry after `retry_after_s`."""

    default_code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(ServiceError):
    """The request's deadline passed."""

    default_code = "deadline_exceeded"


class DrainingError(ServiceError):
    """The process is shutting down and accepts no new requests."""

    default_code = "draining"


class ClientGoneError(ServiceError):
    """The client disconnected; the response is never sent."""

    default_code = "client_gone"


class InferenceFailedError(ServiceError):
    """The forward failed for the batch that contained this row."""

    default_code = "inference_failed"


class DeviceLostError(InferenceFailedError):
    """The device is unusable until the process restarts."""

    default_code = "device_lost"
