"""API keys, checked from method and path before the body is read.

A key is `pk_<8-character id>_<43-character secret>`; the file contains the SHA-256 of the secret only. The secret has
256 random bits, so a fast hash is sufficient, and a slow one would make denial of service easier.

The key file is JSON:

    {"keys": [{"id": "k3v9x2ab", "sha256": "<64 hex>", "scopes": ["classify"], "domains": ["*"]}]}
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import DeniedError, SettingsError, UnauthorizedError

Granted = Literal["classify", "publish", "activate", "rollback", "metrics"]
Scope = Granted | Literal["any"]
"""The scope that a route requires; `any` accepts every valid key."""

SCOPES: Final[tuple[str, ...]] = get_args(Granted)
OPEN_PATHS: Final = frozenset({"/", "/livez", "/readyz"})
"""Paths that require no key: probes, and the web page, which contains no data."""
NO_DIGEST: Final = hashlib.sha256(b"").hexdigest()
KEY_PATTERN: Final = re.compile(r"pk_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")

RULES: Final[tuple[tuple[str, re.Pattern[str], Scope], ...]] = (
    ("POST", re.compile(r"/classify"), "classify"),  # the route checks each image's domain
    ("POST", re.compile(r"/classify/(?P<domain>[^/]+)"), "classify"),
    ("POST", re.compile(r"/domains/(?P<domain>[^/]+)/versions"), "publish"),
    ("DELETE", re.compile(r"/domains/(?P<domain>[^/]+)/versions/[^/]+"), "publish"),
    ("GET", re.compile(r"/domains/(?P<domain>[^/]+)/versions/[^/]+/content"), "publish"),
    ("PUT", re.compile(r"/domains/(?P<domain>[^/]+)/live"), "activate"),
    ("POST", re.compile(r"/domains/(?P<domain>[^/]+)/rollback"), "rollback"),
    ("GET", re.compile(r"/domains/(?P<domain>[^/]+)(/.*)?"), "any"),
    ("GET", re.compile(r"/domains"), "any"),
    ("GET", re.compile(r"/metrics"), "metrics"),
    ("GET", re.compile(r"/(info|docs|docs/oauth2-redirect|openapi\.json)"), "any"),
)
"""Method, path and required scope; the first match applies, no match means denied."""


class Key(BaseModel):
    """One entry of the key file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9]{8}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Granted]
    domains: frozenset[str] = frozenset({"*"})

    def allows(self, scope: Scope, domain: str | None) -> bool:
        """Whether the key may do `scope` on `domain` (None for routes without one)."""
        if scope != "any" and scope not in self.scopes:
            return False
        return domain is None or "*" in self.domains or domain in self.domains


class KeyFile(BaseModel):
    """The key file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...] = ()


def needed_scope(method: str, path: str) -> tuple[Scope | None, str | None]:
    """The scope and domain of a request; scope None means denied."""
    method = "GET" if method == "HEAD" else method
    for rule_method, pattern, scope in RULES:
        if rule_method == method and (match := pattern.fullmatch(path)):
            return scope, match.groupdict().get("domain")
    return None, None


class KeyRing:
    """The keys of one process. Without keys authentication is disabled, which `caspl serve` allows on loopback only.

    Attributes:
        is_open: there are no keys.
    """

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._keys: Mapping[str, Key] = {key.id: key for key in keys}
        self.is_open = not keys

    def check(self, *, method: str, path: str, authorization: str) -> str:
        """Authorize a request by its method, path and Authorization header.

        Returns:
            The key's id, for logs and history; empty if the path requires no key and no valid one was sent.

        Raises:
            UnauthorizedError: missing, malformed or unknown key.
            DeniedError: the key lacks the scope or the domain.
        """
        try:
            key = self._key_of(authorization)
        except UnauthorizedError:
            if path in OPEN_PATHS:
                return ""
            raise
        scope, domain = needed_scope(method, path)
        if path not in OPEN_PATHS and (scope is None or not key.allows(scope, domain)):
            raise DeniedError(f"Key {key.id} lacks the scope or the domain for this request.")
        return key.id

    def _key_of(self, authorization: str) -> Key:
        kind, _, text = authorization.partition(" ")
        match = KEY_PATTERN.fullmatch(text.strip()) if kind.lower() == "bearer" else None
        if match is None:
            raise UnauthorizedError("Send an API key as `Authorization: Bearer pk_...`.")
        key = self._keys.get(match[1])
        digest = hashlib.sha256(match[2].encode()).hexdigest()
        if not hmac.compare_digest(digest, key.sha256 if key else NO_DIGEST) or key is None:
            raise UnauthorizedError("Unknown API key.")
        return key

    def require(self, key_id: str, scope: Scope, domain: str) -> None:
        """Check another scope of an authorized key.

        Raises:
            DeniedError: the key lacks the scope.
        """
        if not self.is_open and not self._keys[key_id].allows(scope, domain):
            raise DeniedError(f"Key {key_id} lacks the scope {scope} for this domain.")


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a key file.

    Raises:
        SettingsError: the file is missing, readable by other users, or invalid.
    """
    try:
        data = path.read_bytes()
        is_private = path.stat().st_mode & 0o077 == 0
    except OSError as error:
        raise SettingsError(f"Cannot read the key file {path}: {error.strerror}.") from error
    if not is_private:
        raise SettingsError(f"The key file {path} is readable by other users; run `chmod 600 {path}`.")
    try:
        return KeyFile.model_validate_json(data).keys
    except ValidationError as error:
        raise SettingsError(f"{path} is not a key file: {error}") from error


def add_key(path: Path, scopes: list[str], domains: list[str]) -> str:
    """Create a key, add its hash to the file (created if missing) and return the key, which is not stored.

    Raises:
        SettingsError: an unknown scope, or an invalid key file.
    """
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise SettingsError(f"Unknown scopes: {', '.join(unknown)}. Known: {', '.join(SCOPES)}.")
    digest = hashlib.sha256(secret.encode()).hexdigest()
    key = Key.model_validate({"id": key_id, "sha256": digest, "scopes": scopes, "domains": domains or ["*"]})
    keys = (*(read_keys(path) if path.exists() else ()), key)
    staged = path.with_name(f".{path.name}.{key_id}")
    descriptor = os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(KeyFile(keys=keys).model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    return f"pk_{key_id}_{secret}"
