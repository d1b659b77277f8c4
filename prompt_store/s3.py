"""The objects of a store in an S3 bucket, and the requests that it makes; botocore is imported when one is opened.

Every write that commits a change is a `PutObject` with `If-None-Match: *`, which fails if the object exists, as `link`
does on a disk. Endpoint, region and credentials come from the standard AWS variables and files.
"""

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final, NamedTuple

from prompt_store.errors import StoreCorruptError, StoreUnavailableError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.s3_errors import BodyError, ExistsError, MissingError, RaceError, converted

SCHEME: Final = "s3://"
CONNECT_TIMEOUT_S: Final = 2
READ_TIMEOUT_S: Final = 5
"""With all attempts shorter than `drain_timeout_s`: a stopping service waits for a request of its poll."""
N_ATTEMPTS: Final = 3
N_CONNECTIONS: Final = 16
N_LISTED: Final = 1000
"""Objects per request of a listing; the maximum."""
_ADDRESS: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.=-]+)*)/?")
_MD5: Final = re.compile(r"[0-9a-f]{32}")


class StoredObject(NamedTuple):
    """One entry of a listing; `modified_s` is in seconds since 1970, by the clock of the server."""

    key: str
    size_bytes: int
    etag: str
    modified_s: float


def is_s3(address: object) -> bool:
    """Whether this is the address of a store in a bucket."""
    return str(address).startswith(SCHEME)


def is_bucket_address(text: str) -> bool:
    """Whether this is `s3://BUCKET` or `s3://BUCKET/PREFIX` with valid names."""
    return _ADDRESS.fullmatch(text) is not None


def has_etag(data: bytes, etag: str) -> bool:
    """Whether an object's entity tag is the MD5 of these bytes; False if the server uses another tag."""
    is_md5 = _MD5.fullmatch(etag) is not None
    return is_md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() == etag


class Bucket:
    """The objects below one prefix; keys are relative to it. Thread-safe."""

    def __init__(self, address: str) -> None:
        """Parse the address and make a client; sends nothing.

        Raises:
            StoreCorruptError: `not_a_store`, not a valid address.
            StoreUnavailableError: `s3_not_installed`; `store_denied`, the configuration of the client is not usable.
        """
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise StoreCorruptError(
                "Not the address of a bucket: expected s3://BUCKET or s3://BUCKET/PREFIX, with letters, digits, "
                "hyphens, underscores and dots. Credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
                code="not_a_store",
            )
        self.name = found[1]
        self.prefix = f"{found[2][1:]}/" if found[2] else ""
        self.address = f"{SCHEME}{self.name}/{self.prefix}".rstrip("/")
        self._client = _client()

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return str(self._client.meta.endpoint_url)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object unless one with this key exists.

        An answer may be lost after the object was created, so one that exists with the same bytes counts as created.

        Returns:
            True if the object has these bytes now; False if it exists with others.

        Raises:
            StoreUnavailableError: `commit_unknown`, it was created or not; others if the server refused the request.
        """
        for attempt in range(N_ATTEMPTS + 1):
            try:
                with converted():
                    self._client.put_object(**self._object(key), Body=data, IfNoneMatch="*")
            except ExistsError as error:  # made by an earlier attempt of the client, or by another machine
                return self._read_back(key, data, error)
            except RaceError:  # with a deletion, or an upload that has not ended
                if attempt == N_ATTEMPTS:
                    raise
                time.sleep(0.05 * 2**attempt)
            except StoreUnavailableError as error:
                if error.code != "store_unavailable":
                    raise
                return self._read_back(key, data, error)
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def _read_back(self, key: str, data: bytes, error: StoreUnavailableError) -> bool:
        """Read the outcome of a conditional write without a response; a late one cannot replace another object."""
        try:
            found = self.get(key)
        except StoreUnavailableError:
            found = None
        if found is None:  # the server may still be working on it
            raise StoreUnavailableError(
                "S3 did not confirm the change, so it may have been made. Read the domain again before a retry.",
                code="commit_unknown",
            ) from error
        return found[0] == data

    def require_conditional_writes(self, key: str, data: bytes) -> None:
        """Check that the server honours `If-None-Match`: with one that ignores it, changes would be lost.

        Args:
            key: of an object that exists.
            data: its bytes, so that a server that ignores the condition changes nothing.

        Raises:
            StoreUnavailableError: `s3_unsupported`, it does not; or the request failed.
        """
        try:
            with converted():
                self._client.put_object(**self._object(key), Body=data, IfNoneMatch="*")
        except ExistsError:
            return
        raise StoreUnavailableError(
            "This S3 server ignores the condition If-None-Match, so machines could overwrite each other's changes; "
            "nothing was changed. Use a server, or a release of it, that has conditional writes.",
            code="s3_unsupported",
        )

    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object, unconditionally: a bundle, whose key is its digest, or a file in the quarantine.

        Raises:
            StoreUnavailableError: the request failed.
        """
        with converted():
            self._client.put_object(**self._object(key), Body=data)

    def get(self, key: str, *, max_bytes: int = MAX_BUNDLE_BYTES) -> tuple[bytes, str] | None:
        """Return the bytes of an object and its entity tag; None if it does not exist.

        Of an object above `max_bytes` one byte more than that is read.

        Raises:
            StoreUnavailableError: the request failed, or the body ended early each time.
        """
        for attempt in range(N_ATTEMPTS):
            try:
                with converted():
                    response = self._client.get_object(**self._object(key))
                    is_foreign = int(response["ContentLength"]) > max_bytes
                    with closing(response["Body"]) as body:  # read in part, it does not check its own length
                        data = body.read(max_bytes + 1) if is_foreign else body.read()
                    return data, str(response["ETag"]).strip('"')
            except MissingError:
                break
            except BodyError:  # the client repeats requests, but not the reading of a body
                if attempt == N_ATTEMPTS - 1:
                    raise
        return None

    def head(self, key: str) -> StoredObject | None:
        """Return the metadata of an object; None if it does not exist.

        Raises:
            StoreUnavailableError: the request failed.
        """
        try:
            with converted():
                found = self._client.head_object(**self._object(key))
        except MissingError:
            return None
        modified_s = found["LastModified"].timestamp()
        return StoredObject(key, int(found["ContentLength"]), str(found["ETag"]).strip('"'), modified_s)

    def list(self, under: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with `under`, sorted; only those after a key, if given.

        One request for each thousand objects.

        Raises:
            StoreUnavailableError: a request failed.
        """
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name,
            Prefix=self.prefix + under,
            MaxKeys=N_LISTED,
            **({"StartAfter": self.prefix + after} if after else {}),
        )
        with converted():
            for page in pages:
                for one in page.get("Contents", ()):
                    key = one["Key"].removeprefix(self.prefix)
                    yield StoredObject(key, one["Size"], one["ETag"].strip('"'), one["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        """Delete an object, if it exists.

        Raises:
            StoreUnavailableError: the request failed.
        """
        with converted():
            self._client.delete_object(**self._object(key))

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": self.prefix + key}


def _client() -> Any:  # noqa: ANN401  botocore makes the class when it runs
    try:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session
    except ModuleNotFoundError as error:
        raise StoreUnavailableError(
            'A store in a bucket needs botocore: pip install "caspl-serve[s3]"', code="s3_not_installed"
        ) from error
    for name in ("botocore", "urllib3"):  # at debug level they log headers, and with them session tokens
        logging.getLogger(name).setLevel(logging.WARNING)
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=N_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": N_ATTEMPTS},
    )
    try:
        return get_session().create_client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StoreUnavailableError(
            f"The S3 client cannot be configured ({type(error).__name__}). Check AWS_ENDPOINT_URL, AWS_REGION and "
            "AWS_PROFILE.",
            code="store_denied",
        ) from error
