"""A bundle in an S3 bucket: the OCI image layout, whose `index.json` names the manifest of a registry's artifact.

Manifest, configuration and layers are blobs, named by their digest and never replaced. `index.json` is written last, so
a reader has either the former artifact or the new one, and `oras` and `skopeo` read a copy of the folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompt_store.bundle import read_bundle
from prompt_store.digest import check_digest, digest_bytes
from prompt_store.errors import LimitExceededError, RemoteError, StoreCorruptError, StoreUnavailableError
from prompt_store.remotes.address import DEFAULT_TAG, BucketAddress, is_loopback
from prompt_store.remotes.artifact import Artifact
from prompt_store.remotes.modelpack import ARTIFACT_TYPE, MANIFEST_TYPE, Descriptor, read_manifest, write_manifest
from prompt_store.s3 import Bucket
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
TAG: Final = "org.opencontainers.image.ref.name"
INDEX: Final = "index.json"
MARKER: Final = "oci-layout"
MAX_JSON_BYTES: Final = 4 * 1024 * 1024
"""Of an index or a manifest; the limit of registries."""
_STORE_MARKER: Final = "FORMAT"
_FAILURES: Final = {
    "s3_not_installed": (
        "extra_missing",
        "needs the package botocore, which is not installed",
        'pip install "caspl-serve[s3]"',
    ),
    "store_denied": (
        "remote_unauthorized",
        "cannot be used with these credentials or in this region",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_REGION.",
    ),
    "store_unavailable": (
        "remote_unreachable",
        "cannot be reached, or its response was not complete",
        "Check the network and AWS_ENDPOINT_URL.",
    ),
    "not_a_store": ("remote_not_found", "has no bucket", "Create it, or check the name and AWS_ENDPOINT_URL."),
    "clock_skew": ("remote_failed", "refuses this machine's clock", "Set the clock."),
}
_FAILED: Final = ("remote_failed", "did not complete the request", "Try again later.")


class _Index(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    schema_version: Annotated[int, Field(alias="schemaVersion", ge=2, le=2)]
    manifests: Annotated[list[Descriptor], Field(max_length=64)]


class BucketLayout:
    """One address in a bucket. Endpoint, region and credentials come from the standard AWS variables and files.

    Args:
        address: bucket and prefix.
        plain_http: allow an endpoint with plain HTTP on another host than this machine, too.

    Raises:
        RemoteError: `extra_missing`, botocore is not installed; `remote_insecure`.
    """

    def __init__(self, address: BucketAddress, *, plain_http: bool = False) -> None:
        self.address = address
        with self._converted_errors():
            self._bucket = Bucket(address.bucket)
        endpoint = httpx.URL(self._bucket.endpoint)
        if endpoint.scheme != "https" and not plain_http and not is_loopback(endpoint.host):
            message = f"{endpoint.host} would be reached without encryption. Use HTTPS, or allow it with --plain-http."
            raise RemoteError(message, code="remote_insecure")

    def close(self) -> None:
        """Close the connections."""
        self._bucket.close()

    def newest(self) -> str:
        """The digest of the manifest that the address names now; one small request.

        Raises:
            RemoteError: the bucket cannot be reached, refuses access, or has no artifact at the prefix.
        """
        if self.address.digest is not None:
            return self.address.digest
        data = self._read(INDEX, MAX_JSON_BYTES)
        try:
            manifests = _Index.model_validate(load_object(data)).manifests
        except (StrictJsonError, ValidationError) as error:
            message = f"{self.address} has an invalid {INDEX}. `caspl push` writes one."
            raise RemoteError(message, code="media_type_unknown") from error
        named = [one for one in manifests if one.annotations.get(TAG) == DEFAULT_TAG] or manifests
        if len(named) != 1 or named[0].media_type != MANIFEST_TYPE:
            message = f"{self.address} names {len(manifests)} artifacts, expected one bundle. `caspl push` writes one."
            raise RemoteError(message, code="media_type_unknown")
        return named[0].digest

    def pull(self, revision: str | None = None) -> Artifact:
        """Download the artifact; every part is verified against its digest.

        Args:
            revision: digest of the manifest, such as `newest` returns; None is the one that the address names.

        Raises:
            RemoteError: as `newest`; `media_type_unknown`, it is not a bundle.
            LimitExceededError: a part is too large; it was not downloaded.
            DigestMismatchError: a part has other bytes.
        """
        digest = revision or self.newest()
        manifest = self._read(_key(digest), MAX_JSON_BYTES)
        check_digest(manifest, digest)
        layers = read_manifest(manifest)
        bundle = self._read_blob(layers.bundle)
        signatures = tuple(self._read_blob(layer) for layer in layers.signatures)
        bom = None if layers.bom is None else self._read_blob(layers.bom)
        return Artifact(bundle, signatures, bom, layers.others)

    def push(self, artifact: Artifact, *, is_public: bool = False) -> str:  # noqa: ARG002  for the Hub
        """Upload an artifact, its index last: the address never names an incomplete one.

        Returns:
            the address with the digest of the manifest. Former artifacts stay under their digests.

        Raises:
            RemoteError: `address_invalid`, the address has a digest; `repository_taken`, there is a prompt store at the
                prefix; otherwise as `newest`.
        """
        if self.address.digest is not None:
            raise RemoteError("A digest cannot be pushed to. Leave it out.", code="address_invalid")
        manifest, blobs = write_manifest(artifact, read_bundle(artifact.bundle))
        digest = digest_bytes(manifest)
        entry = {
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "digest": digest,
            "size": len(manifest),
            "annotations": {TAG: DEFAULT_TAG},
        }
        index = dump_canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})
        with self._converted_errors():
            if self._bucket.head(_STORE_MARKER) is not None:
                message = f"There is a prompt store at {self.address}. Choose another prefix, or use `caspl upload`."
                raise RemoteError(message, code="repository_taken")
            for key, data in {_key(digest): data for digest, data in [*blobs.items(), (digest, manifest)]}.items():
                found = self._bucket.head(key)
                if found is None or found.size_bytes != len(data):
                    self._bucket.put(key, data)
            self._bucket.put(MARKER, dump_canonical({"imageLayoutVersion": "1.0.0"}))
            self._bucket.put(INDEX, index)
        return f"{self.address}@{digest}"

    def _read_blob(self, layer: Descriptor) -> bytes:
        data = self._read(_key(layer.digest), layer.size)
        check_digest(data, layer.digest)
        return data

    def _read(self, key: str, max_bytes: int) -> bytes:
        with self._converted_errors():
            found = self._bucket.get(key, max_bytes=max_bytes)
        if found is None:
            message = f"{self.address} has no {key}. `caspl push` writes a bundle there; a store is named by --store."
            raise RemoteError(message, code="remote_not_found")
        if len(found[0]) > max_bytes:
            message = f"{key} of {self.address} is larger than {max_bytes} bytes."
            raise LimitExceededError("too_large", message, limit=max_bytes)
        return found[0]

    @contextmanager
    def _converted_errors(self) -> Iterator[None]:
        """Raise `RemoteError` for the errors of a bucket."""
        try:
            yield
        except (StoreUnavailableError, StoreCorruptError) as error:
            code, problem, next_step = _FAILURES.get(error.code, _FAILED)
            raise RemoteError(f"{self.address} {problem}. {next_step}", code=code) from error


def _key(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
