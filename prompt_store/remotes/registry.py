"""An OCI registry: the few calls of the OCI distribution API that push and pull one artifact, and its logins."""

import base64
import re
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

import httpx

from prompt_store.bundle import read_bundle
from prompt_store.digest import check_digest, digest_bytes, is_digest
from prompt_store.errors import DigestMismatchError, RemoteError
from prompt_store.remotes.address import RegistryAddress, is_loopback, printable
from prompt_store.remotes.artifact import Artifact
from prompt_store.remotes.docker_config import DOCKER_HUB, read_credentials
from prompt_store.remotes.modelpack import MANIFEST_TYPE, Descriptor, read_manifest, write_manifest
from prompt_store.remotes.transfer import Answer, Transfer
from prompt_store.strict_json import StrictJsonError, load_object

_DOCKER_HUB_API: Final = "registry-1.docker.io"
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')
_TOKEN: Final = re.compile(r"[!-~]+")
_OTHER_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ACCEPT: Final = {"Accept": ", ".join((MANIFEST_TYPE, *(f"{kind};q=0.1" for kind in _OTHER_TYPES)))}
"""Other types are accepted to name them in the error."""


class Registry:
    """One address of an OCI registry.

    Args:
        address: of the artifact.
        plain_http: use plain HTTP; a registry on this machine is reached by plain HTTP anyway.
    """

    def __init__(self, address: RegistryAddress, *, plain_http: bool = False) -> None:
        self.address = address
        host = _DOCKER_HUB_API if address.host in DOCKER_HUB else address.host
        self._plain_http = plain_http
        is_plain = plain_http or is_loopback(host)
        self._hint = f"Log in with `docker login {address.host}`."
        origin = f"{'http' if is_plain else 'https'}://{host}"
        self._transfer = Transfer(origin, plain_http=plain_http, log_in=self._log_in, hint=self._hint)
        self._path = f"/v2/{address.name}"

    def close(self) -> None:
        """Close the connections."""
        self._transfer.close()

    def newest(self) -> str:
        """The digest of the manifest that the address names now.

        Raises:
            RemoteError: the registry cannot be reached, refuses access, or has no such artifact.
        """
        if self.address.digest is not None:
            return self.address.digest
        answer = self._transfer.send("HEAD", f"{self._path}/manifests/{self.address.reference}", headers=_ACCEPT)
        self._require(answer, HTTPStatus.OK)
        digest = answer.headers.get("Docker-Content-Digest", "")
        return digest if is_digest(digest) else digest_bytes(self._read_manifest(self.address.reference))

    def pull(self, revision: str | None = None) -> Artifact:
        """Download the artifact; every part is verified against its digest.

        Args:
            revision: digest of the manifest, such as `newest` returns; None is the one that the address names.

        Raises:
            RemoteError: as `newest`; `media_type_unknown`, it is not a bundle.
            LimitExceededError: a part is too large; it was not downloaded.
            DigestMismatchError: a part has other bytes.
        """
        reference = revision or self.address.reference
        data = self._read_manifest(reference)
        if is_digest(reference):
            check_digest(data, reference)
        layers = read_manifest(data)
        bundle = self._read_blob(layers.bundle)
        signatures = tuple(self._read_blob(layer) for layer in layers.signatures)
        bom = None if layers.bom is None else self._read_blob(layers.bom)
        return Artifact(bundle, signatures, bom, layers.others)

    def push(self, artifact: Artifact, *, is_public: bool = False) -> str:  # noqa: ARG002  for the Hub
        """Upload an artifact, its manifest last: the tag never names an incomplete one.

        Returns:
            the address with the digest of the manifest.

        Raises:
            RemoteError: `address_invalid`, the address has a digest; otherwise as `newest`.
        """
        if self.address.digest is not None:
            raise RemoteError("A digest cannot be pushed to. Name a tag.", code="address_invalid")
        manifest, blobs = write_manifest(artifact, read_bundle(artifact.bundle))
        for digest, data in blobs.items():
            self._write_blob(digest, data)
        answer = self._transfer.send(
            "PUT",
            f"{self._path}/manifests/{self.address.reference}",
            headers={"Content-Type": MANIFEST_TYPE},
            content=manifest,
        )
        self._require(answer, HTTPStatus.CREATED)
        digest = digest_bytes(manifest)
        stored = answer.headers.get("Docker-Content-Digest", digest)
        if stored != digest:
            raise DigestMismatchError("digest_mismatch", f"The registry stored another manifest, not {digest}.")
        return f"{self.address}@{digest}"

    def _read_manifest(self, reference: str) -> bytes:
        answer = self._transfer.send("GET", f"{self._path}/manifests/{reference}", headers=_ACCEPT)
        self._require(answer, HTTPStatus.OK)
        return answer.body

    def _read_blob(self, layer: Descriptor) -> bytes:
        answer = self._transfer.send("GET", f"{self._path}/blobs/{layer.digest}", max_bytes=layer.size)
        self._require(answer, HTTPStatus.OK)
        check_digest(answer.body, layer.digest)
        return answer.body

    def _write_blob(self, digest: str, data: bytes) -> None:
        found = self._transfer.send("HEAD", f"{self._path}/blobs/{digest}")
        if found.status == HTTPStatus.OK:
            return
        started = self._transfer.send("POST", f"{self._path}/blobs/uploads/", content=b"")
        self._require(started, HTTPStatus.ACCEPTED)
        place = self._transfer.location(started).copy_merge_params({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        self._require(self._transfer.send("PUT", str(place), headers=headers, content=data), HTTPStatus.CREATED)

    def _require(self, answer: Answer, status: HTTPStatus) -> None:
        if answer.status == HTTPStatus.NOT_FOUND:
            message = f"{self.address.host} has no {self.address.name} with {self.address.reference}, or it is private."
            raise RemoteError(message, code="remote_not_found")
        if answer.status != status:
            what = printable(answer.url.path)
            raise RemoteError(f"{answer.url.host} answers {what} with status {answer.status}, expected {status.value}.")

    def _log_in(self, challenge: str) -> str | None:
        """Answer a challenge with the credentials of docker's configuration, as a header Authorization.

        Raises:
            RemoteError: `remote_unauthorized`, the token server refuses the credentials; others as `Transfer.send`.
        """
        credentials = read_credentials(self.address.host)
        basic = None
        if credentials is not None:
            basic = "Basic " + base64.b64encode(":".join(credentials).encode()).decode()
        kind, _, rest = challenge.partition(" ")
        if kind.lower() != "bearer":
            return basic if kind.lower() == "basic" else None
        facts = dict(_PARAMETER.findall(rest))
        query = urlencode({name: facts[name] for name in ("service", "scope") if name in facts})
        try:
            realm = httpx.URL(facts.get("realm", ""))
        except httpx.InvalidURL as error:
            raise RemoteError(f"{self.address.host} names an invalid token server.") from error
        self._transfer.check(realm, self._transfer.origin)
        return f"Bearer {self._read_token(realm, query, basic)}"

    def _read_token(self, realm: httpx.URL, query: str, basic: str | None) -> str:
        """Get a token from the registry's token server, which may be another host: it receives the credentials."""
        origin = str(realm.copy_with(raw_path=b"/"))
        tokens = Transfer(origin, plain_http=self._plain_http, authorization=basic, hint=self._hint)
        try:
            answer = tokens.send("GET", f"{realm.raw_path.decode()}{'&' if realm.query else '?'}{query}")
        finally:
            tokens.close()
        try:
            fields = load_object(answer.body)
        except StrictJsonError as error:
            raise RemoteError(f"The token server {realm.host} sends no token ({answer.status}).") from error
        token = fields.get("token") or fields.get("access_token")
        if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
            raise RemoteError(f"The token server {realm.host} sends no token ({answer.status}).")
        return token
