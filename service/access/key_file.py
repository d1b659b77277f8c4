"""The key file: API keys with their scopes, domains, validity and rates.

A key is `pk_<8-character id>_<43-character secret>`; the file contains the SHA-256 of the secret only. The secret has
256 random bits, so a fast hash is sufficient, and a slow one would make denial of service easier.

The file is JSON; only `id`, `sha256` and `scopes` are required:

    {"keys": [{"id": "k3v9x2ab", "sha256": "<64 hex>", "scopes": ["classify"], "domains": ["*"], "name": "line 4",
               "not_before": "2026-12-01T00:00:00Z", "expires": "2027-03-01T00:00:00Z",
               "requests_per_s": 20, "bytes_per_s": 5e6}]}
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from prompt_store.manifest import is_domain
from prompt_store.validation import plain_message
from service.access.rules import SCOPES, Granted, Scope
from service.errors import SettingsError, UnauthorizedError

DURATION: Final = re.compile(r"(\d{1,5})([dhm])")
UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}
OTHERS: Final = 0o077
"""Permissions that nobody but the owner of a key file may have."""
OTHERS_OF_ROOTS_FILE: Final = 0o037
"""The group may read a file of root: a Secret of Kubernetes belongs to root and to a group of the container."""


class Key(BaseModel):
    """One entry of the key file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9]{8}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Granted]
    domains: frozenset[str] = frozenset({"*"})
    name: str = ""
    not_before: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    requests_per_s: float | None = Field(None, gt=0)
    bytes_per_s: float | None = Field(None, gt=0)

    def allows(self, scope: Scope, domain: str | None) -> bool:
        """Whether the key may do `scope` on `domain` (None for routes without one)."""
        if scope != "any" and scope not in self.scopes:
            return False
        return domain is None or "*" in self.domains or domain in self.domains

    def check_period(self) -> None:
        """Check the key's validity period.

        Raises:
            UnauthorizedError: the key has expired, or is not valid yet.
        """
        now = datetime.now(UTC)
        if self.expires and now >= self.expires:
            message = f"API key {self.id} expired on {self.expires:%Y-%m-%d}. Use another key."
            raise UnauthorizedError(message, code="key_expired")
        if self.not_before and now < self.not_before:
            raise UnauthorizedError(f"API key {self.id} is valid from {self.not_before}.", code="key_not_yet_valid")


class KeyFile(BaseModel):
    """The key file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a key file.

    Raises:
        SettingsError: the file is missing, accessible to other users, or invalid.
    """
    try:
        data = path.read_bytes()
        require_private(path, "key file")
    except OSError as error:
        raise SettingsError(f"Cannot read the key file {path}: {error.strerror}.") from error
    try:
        return KeyFile.model_validate_json(data).keys
    except ValidationError as error:
        raise SettingsError(f"{path} is not a key file: {_explained(error)}.") from error


def require_private(path: Path, what: str) -> None:
    """Check that only the owner of a file, or the group of one of root's, can read it; `what` names it in the error.

    Raises:
        SettingsError: others can read it.
        OSError: the file does not exist.
    """
    status = path.stat()
    if status.st_mode & (OTHERS_OF_ROOTS_FILE if status.st_uid == 0 else OTHERS):
        raise SettingsError(f"The {what} {path} is accessible to other users; run `chmod 600 {path}`.")


def _explained(error: ValidationError) -> str:
    """The problems in one line, without values, which may be hashes."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {plain_message(problem['msg'])}" for problem in error.errors()
    )


def moment(text: str) -> datetime:
    """Parse a duration from now, such as `90d`, `12h` or `30m`, or a date in UTC.

    Raises:
        SettingsError: neither of these.
    """
    if match := DURATION.fullmatch(text):
        return datetime.now(UTC).replace(microsecond=0) + timedelta(**{UNITS[match[2]]: int(match[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(f"Expected a duration (90d, 12h) or a date (2027-03-31), found {text!r}.") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def add_key(path: Path, scopes: Sequence[str], domains: Sequence[str], **fields: Any) -> str:  # noqa: ANN401
    """Create a key, add its hash to the file (created if missing) and return the key, which is not stored.

    Args:
        path: the key file.
        scopes: what the key may do.
        domains: where; empty for all domains.
        fields: further fields of `Key`.

    Raises:
        SettingsError: an unknown scope or invalid field, or an invalid key file.
    """
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise SettingsError(f"Unknown scopes: {', '.join(unknown)}. Known: {', '.join(SCOPES)}.")
    if invalid := [domain for domain in domains if domain != "*" and not is_domain(domain)]:
        raise SettingsError(f"Not a valid domain name: {', '.join(map(repr, invalid))}.")
    digest = hashlib.sha256(secret.encode()).hexdigest()
    entry = {"id": key_id, "sha256": digest, "scopes": scopes, "domains": domains or ["*"], **fields}
    try:
        key = Key.model_validate(entry)
    except ValidationError as error:
        raise SettingsError(f"Invalid key: {_explained(error)}.") from error
    with _editing(path):
        _write(path, (*(read_keys(path) if path.exists() else ()), key))
    return f"pk_{key_id}_{secret}"


def revoke_key(path: Path, key_id: str) -> None:
    """Remove a key from the file.

    Raises:
        SettingsError: no key with this id, or an invalid key file.
    """
    with _editing(path):
        keys = read_keys(path)
        if key_id not in {key.id for key in keys}:
            raise SettingsError(f"{path} has no key {key_id!r}. `caspl keys ls {path}` lists the ids.")
        _write(path, [key for key in keys if key.id != key_id])


@contextmanager
def _editing(path: Path) -> Iterator[None]:
    """Hold a lock on the file's folder, so that no concurrent edit is lost, and sync it, so that none is undone."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SettingsError(f"Cannot write the key file {path}: {error.strerror}.") from error


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file atomically; it keeps its owner, so that root can edit the file of a service."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                os.fchown(descriptor, path.stat().st_uid, path.stat().st_gid)
            file.write(KeyFile(keys=tuple(keys)).model_dump_json(indent=1, exclude_none=True))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
