"""Everything the service itself can refuse or fail at, as exceptions.

Knows what went wrong and which facts a caller may see (`extra`). Does not know HTTP: the status of each class
stands in `service/http/problems.py`, and nowhere else.

    ServiceError
    ├── SettingsError                a start-up problem: unknown variable, missing keys, unusable demo files
    ├── RequestInvalidError          the request as a whole cannot be understood
    │   ├── BodyTooLargeError        more bytes, or more images, than allowed
    │   ├── SlowBodyError            the body did not arrive in time
    │   └── MediaTypeError           a content type (or encoding) nobody here reads
    ├── UnauthorizedError            no key, or not one of ours
    ├── DeniedError                  a key without the scope or the domain
    ├── ForeignRequestError          no keys are needed, and another machine's name or another site asks
    ├── DomainNotLiveError           the domain exists, no version of it is live
    ├── DomainUnavailableError       its live version could not be loaded
    ├── BackboneMismatchError        a bundle made for other weights
    ├── PreconditionFailedError      If-Match names something that is no longer live
    ├── ImageRejectedError           one image that is not served
    │   ├── ImageFormatError         not JPEG, PNG or WebP
    │   └── ImageTooLargeError       too many bytes or pixels
    ├── ImagesRejectedError          every image of a request was rejected
    ├── OverloadedError              a queue is full
    ├── DeadlineExceededError        too late
    ├── DrainingError                the process is about to stop
    ├── ClientGoneError              nobody is left to answer
    └── InferenceFailedError         the device failed on this batch
        └── DeviceLostError          the device will not answer again in this process
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Base of the service's own errors; `message` is written for the person who called.

    Args:
        message: what was expected, what was found, what to do; shown to callers unless the problem table hides it.
        code: a more precise stable code than the class's own.
        extra: further facts for the answer's body, JSON values only.
    """

    default_code: ClassVar[str] = "service_error"

    def __init__(self, message: str, *, code: str | None = None, extra: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.extra = extra or {}


class SettingsError(ServiceError):
    """The service cannot start as configured."""

    default_code = "settings_invalid"


class RequestInvalidError(ServiceError):
    """The request as a whole cannot be understood."""

    default_code = "request_invalid"


class BodyTooLargeError(RequestInvalidError):
    """More bytes, or more images, than one request may carry."""

    default_code = "too_large"


class SlowBodyError(RequestInvalidError):
    """The body did not arrive within its time."""

    default_code = "slow_body"


class MediaTypeError(RequestInvalidError):
    """A content type or content encoding that this route does not read."""

    default_code = "unsupported_media"


class UnauthorizedError(ServiceError):
    """The request carries no key, or not one of ours."""

    default_code = "unauthorized"


class DeniedError(ServiceError):
    """The key is ours but may not do this."""

    default_code = "denied"


class ForeignRequestError(ServiceError):
    """The service is open to this machine only, and the request comes by another name or from another site's page."""

    default_code = "foreign_request"


class DomainNotLiveError(ServiceError):
    """The domain exists, but no version of it has been activated."""

    default_code = "domain_not_live"


class DomainUnavailableError(ServiceError):
    """The domain's live version could not be loaded."""

    default_code = "domain_unavailable"


class BackboneMismatchError(ServiceError):
    """The bundle was made for other weights than the ones that run here."""

    default_code = "backbone_mismatch"

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(
            f"The bundle was made for backbone {found}, this service runs {expected}. "
            "Train it again on this backbone, or start a service with the other one.",
            extra={"expected_fingerprint": expected, "found_fingerprint": found},
        )


class PreconditionFailedError(ServiceError):
    """If-Match names a digest that is not the live one (any more)."""

    default_code = "precondition_failed"


class ImageRejectedError(ServiceError):
    """One image that is not served; its neighbours are."""

    default_code = "image_undecodable"


class ImageFormatError(ImageRejectedError):
    """The bytes are not JPEG, PNG or WebP."""

    default_code = "image_format"


class ImageTooLargeError(ImageRejectedError):
    """The image has too many bytes or too many pixels."""

    default_code = "image_bytes"


class ImagesRejectedError(ServiceError):
    """A request with several images, none of which could be served."""

    default_code = "images_rejected"


class OverloadedError(ServiceError):
    """A queue is full; the caller should come back later."""

    default_code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(ServiceError):
    """The answer could not be ready in the time the caller allowed."""

    default_code = "deadline_exceeded"


class DrainingError(ServiceError):
    """The process is stopping and takes no new work."""

    default_code = "draining"


class ClientGoneError(ServiceError):
    """The caller hung up; the error exists to unwind, nobody reads its answer."""

    default_code = "client_gone"


class InferenceFailedError(ServiceError):
    """The device failed on the batch this row was in."""

    default_code = "inference_failed"


class DeviceLostError(InferenceFailedError):
    """The device is in a state that only a new process can leave."""

    default_code = "device_lost"
