"""Addresses of bundles elsewhere: `oci://host/name:tag@digest`, `hf://owner/repository@revision`, `s3://bucket/prefix`."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prompt_store.digest import DIGEST_PATTERN
from prompt_store.errors import RemoteError
from prompt_store.s3 import is_bucket_address

DEFAULT_TAG: Final = "latest"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = rf"(?P<host>(?:\[(?P<ip>[0-9a-f:.]+)\]|{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?)"
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_OCI: Final = re.compile(
    rf"oci://{_HOST}/(?P<name>{_PART}(?:/{_PART})*)"
    rf"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?(?:@(?P<digest>{DIGEST_PATTERN}))?"
)
_HUB: Final = re.compile(
    r"hf://(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[A-Za-z0-9][\w./-]{0,127}))?"
)
_S3: Final = re.compile(rf"(?P<bucket>s3://[^@]+)(?:@(?P<digest>{DIGEST_PATTERN}))?")
_MAX_CHARS: Final = 512
_MAX_PORT: Final = 65535


@dataclass(frozen=True)
class RegistryAddress:
    """A tag of a repository in an OCI registry.

    Attributes:
        host: with a port, if there is one.
        name: of the repository.
        tag: None for an address with a digest only.
        digest: of the manifest; an address with it is immutable.
    """

    host: str
    name: str
    tag: str | None = None
    digest: str | None = None

    @property
    def reference(self) -> str:
        """The digest, or the tag without one."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"oci://{self.host}/{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


@dataclass(frozen=True)
class HubAddress:
    """A model repository on the Hugging Face Hub, `owner/name`; `revision` None is the main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}{f'@{self.revision}' if self.revision else ''}"


@dataclass(frozen=True)
class BucketAddress:
    """An OCI image layout in an S3 bucket.

    Attributes:
        bucket: `s3://BUCKET/PREFIX`.
        digest: of the manifest; an address with it is immutable.
    """

    bucket: str
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.bucket}{f'@{self.digest}' if self.digest else ''}"


Address = RegistryAddress | HubAddress | BucketAddress


def parse_address(text: str) -> Address:
    """Parse an address of any kind, by its scheme.

    Raises:
        RemoteError: `address_invalid`.
    """
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in _PARSERS:
        raise invalid_address(text, " or ".join(f"{name}://…" for name in _PARSERS))
    return _PARSERS[scheme](text)


def parse_registry_address(text: str) -> RegistryAddress:
    """Parse an address of a registry; without tag and digest it is the tag `latest`.

    Raises:
        RemoteError: `address_invalid`.
    """
    found = _OCI.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if found is None or not _is_host(found["ip"], found["port"]):
        raise invalid_address(text, "oci://HOST[:PORT]/NAME[:TAG][@sha256:DIGEST], NAME in lower case")
    tag = found["tag"] if found["tag"] or found["digest"] else DEFAULT_TAG
    return RegistryAddress(found["host"], found["name"], tag, found["digest"])


def _is_host(ip: str | None, port: str | None) -> bool:
    """Whether a bracketed IPv6 address and a port, if there are any, are valid."""
    try:
        if ip is not None:
            ipaddress.IPv6Address(ip)
    except ValueError:
        return False
    return port is None or 1 <= int(port) <= _MAX_PORT


def parse_hub_address(text: str) -> HubAddress:
    """Parse an address of the Hugging Face Hub.

    Raises:
        RemoteError: `address_invalid`.
    """
    found = _HUB.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if found is None:
        raise invalid_address(text, "hf://OWNER/REPOSITORY[@REVISION]")
    return HubAddress(found["repository"], found["revision"])


def parse_bucket_address(text: str) -> BucketAddress:
    """Parse an address in an S3 bucket.

    Raises:
        RemoteError: `address_invalid`.
    """
    found = _S3.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if found is None or not is_bucket_address(found["bucket"]):
        raise invalid_address(text, "s3://BUCKET[/PREFIX][@sha256:DIGEST]")
    return BucketAddress(found["bucket"].rstrip("/"), found["digest"])


_PARSERS: Final[Mapping[str, Callable[[str], Address]]] = {
    "oci": parse_registry_address,
    "hf": parse_hub_address,
    "s3": parse_bucket_address,
}


def invalid_address(text: str, expected: str) -> RemoteError:
    """The error for a text that is no address; the text is not repeated where it may contain a password."""
    authority = text.partition("://")[2].partition("/")[0]
    if "@" in authority:
        message = (
            "An address contains no user or password. Log in with `docker login HOST` or `hf auth login`; for S3 set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    else:
        message = f"Not an address of a bundle: {printable(text)}. Expected {expected}."
    return RemoteError(message, code="address_invalid")


def printable(text: str) -> str:
    """The beginning of a text from elsewhere, safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:200])


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    else:
        name = host.partition(":")[0] if host.count(":") == 1 else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
