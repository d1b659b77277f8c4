"""botocore's errors as errors of the store; messages contain error codes, but no keys, headers or texts of a server."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from prompt_store.errors import PromptStoreError, StoreCorruptError, StoreUnavailableError

_MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_EXISTS: Final = frozenset({"PreconditionFailed", "412"})
_RACE: Final = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
_CLOCK: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_BUSY: Final = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"})


class MissingError(StoreUnavailableError):
    """No such object."""


class ExistsError(StoreUnavailableError):
    """The object of a conditional write exists."""


class RaceError(StoreUnavailableError):
    """The server refused a conditional write because of another request for the same object at the same time."""


class BodyError(StoreUnavailableError):
    """A response's body ended early, or does not match its checksum."""


@contextmanager
def converted() -> Iterator[None]:
    """Raise the store's errors instead of botocore's.

    Raises:
        MissingError, ExistsError, RaceError: the object, or a conditional write, as named.
        BodyError: a response's body ended early, or does not match its checksum.
        StoreUnavailableError: any other failure.
        StoreCorruptError: `not_a_store`, no such bucket.
    """
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        FlexibleChecksumError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _refused(error.response) from error
    except (FlexibleChecksumError, IncompleteReadError, ResponseParserError, ResponseStreamingError) as error:
        name = type(error).__name__
        raise BodyError(f"A response of S3 was not complete ({name}). The local copy is still served.") from error
    except BotoCoreError as error:
        name = type(error).__name__
        if "Credential" in name or "Token" in name:
            raise StoreUnavailableError(
                f"No usable credentials for S3 ({name}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE.",
                code="store_denied",
            ) from error
        why = "does not answer in time" if isinstance(error, ReadTimeoutError) else "cannot be reached"
        raise _unavailable(f"S3 {why} ({name})") from error


def _unavailable(problem: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{problem}. Nothing was changed; the local copy is still served. Check the network and AWS_ENDPOINT_URL."
    )


def _refused(response: dict[str, Any]) -> PromptStoreError:
    """The error for an error response of the server."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = code if re.fullmatch(r"[A-Za-z0-9.]{1,64}", code) else str(status)
    for kind, codes in ((MissingError, _MISSING), (ExistsError, _EXISTS), (RaceError, _RACE)):
        if code in codes:
            return kind(f"S3 refused the request ({code}). Retry later.")
    if code == "NoSuchBucket":
        message = "S3 has no bucket of this name. Create it, or check the address of the store and AWS_ENDPOINT_URL."
        return StoreCorruptError(message, code="not_a_store")
    if code in _CLOCK:
        return StoreUnavailableError(
            f"S3 refused the request, because its clock and this machine's differ too much ({code}). Set the clock.",
            code="clock_skew",
        )
    if status >= 500 or code in _BUSY:
        return _unavailable(f"S3 reported an error ({code})")
    return StoreUnavailableError(
        f"S3 refused the request ({code}). Check the credentials, the region, and the permissions s3:GetObject, "
        "s3:PutObject, s3:DeleteObject and s3:ListBucket.",
        code="store_denied",
    )
