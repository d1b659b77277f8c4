"""The API keys in force, checked from the Authorization header."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from service.access.key_file import Key, read_keys
from service.access.rules import Scope
from service.errors import DeniedError, SettingsError, UnauthorizedError

logger = logging.getLogger(__name__)

NO_DIGEST: Final = hashlib.sha256(b"").hexdigest()
KEY_PATTERN: Final = re.compile(r"pk_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
POLL_S: Final = 0.5
"""Interval between checks of the key file for changes."""


class KeyRing:
    """The keys in force in one process.

    Without keys authentication is disabled, which `caspl serve` allows on loopback only. Changes of the key file take
    effect within `POLL_S`: requests check it, so that no task has to run. If it becomes unreadable, the keys stay.

    Args:
        keys: the keys at startup.
        path: the file to follow; None keeps these keys.

    Attributes:
        is_open: authentication is disabled; removing all keys later does not disable it.
    """

    def __init__(self, keys: tuple[Key, ...] = (), path: Path | None = None) -> None:
        self.is_open = not keys
        self._keys: Mapping[str, Key] = {key.id: key for key in keys}
        self._path = path
        self._stamp: tuple[int, ...] | None = ()
        self._checked_s = -POLL_S

    def authenticate(self, authorization: str) -> Key:
        """The key in an Authorization header.

        Raises:
            UnauthorizedError: missing, malformed, unknown, expired or not yet valid key.
        """
        self._refresh()
        kind, _, text = authorization.partition(" ")
        match = KEY_PATTERN.fullmatch(text.strip()) if kind.lower() == "bearer" else None
        if match is None:
            found = "Not an API key" if authorization else "No API key"
            raise UnauthorizedError(f"{found}: send one as `Authorization: Bearer pk_...`.")
        key = self._keys.get(match[1])
        digest = hashlib.sha256(match[2].encode()).hexdigest()
        if not hmac.compare_digest(digest, key.sha256 if key else NO_DIGEST) or key is None:
            raise UnauthorizedError("Unknown API key: it is misspelled, or was revoked.")
        key.check_period()
        return key

    def allows(self, key_id: str, scope: Scope, domain: str | None) -> bool:
        """Whether an authenticated key may do `scope` on `domain`; the empty id is a client without a key."""
        if self.is_open:
            return True
        self._refresh()  # the device process authenticates no requests: its web workers do
        key = self._keys.get(key_id)
        return key is not None and key.allows(scope, domain)

    def require(self, key_id: str, scope: Scope, domain: str | None) -> None:
        """Check a scope of an authenticated key.

        Raises:
            DeniedError: the key lacks the scope or the domain.
        """
        if not self.allows(key_id, scope, domain):
            needed = "this domain" if scope == "any" else f"the scope {scope}, or not for this domain"
            raise DeniedError(f"API key {key_id} is not valid for {needed}. Use another key.")

    def in_force(self) -> tuple[Key, ...]:
        """All keys, whatever their validity; none if authentication is disabled."""
        self._refresh()
        return tuple(self._keys.values())

    def _refresh(self) -> None:
        """Read the key file again if it has changed."""
        now_s = time.monotonic()
        if self._path is None or now_s - self._checked_s < POLL_S:
            return
        self._checked_s = now_s
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except SettingsError as error:
            logger.error("keys.unreadable", extra={"error": str(error)})  # noqa: TRY400  the message is complete
        else:
            logger.info("keys.loaded", extra={"n_keys": len(self._keys)})


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the file's content or permissions do; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ctime_ns, status.st_mtime_ns, status.st_ino, status.st_size
