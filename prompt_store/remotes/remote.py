"""Remotes, which bundles are pushed to and pulled from: OCI registries, S3 buckets and the Hugging Face Hub."""

from typing import Protocol

from prompt_store.errors import RemoteError
from prompt_store.remotes.address import Address, BucketAddress, HubAddress, RegistryAddress
from prompt_store.remotes.artifact import Artifact
from prompt_store.remotes.bucket_layout import BucketLayout
from prompt_store.remotes.registry import Registry


class Remote(Protocol):
    """One address in a registry, in a bucket or on a hub; all calls block, and raise `RemoteError` if they fail."""

    def newest(self) -> str:
        """Return the digest or the commit that the address resolves to now. Cheap, for polling."""

    def pull(self, revision: str | None = None) -> Artifact:
        """Download the artifact at the address, or a revision that `newest` returned; only its digests are verified."""

    def push(self, artifact: Artifact, *, is_public: bool = False) -> str:
        """Upload an artifact; return an immutable address of it. `is_public` is for new repositories."""

    def close(self) -> None:
        """Close the connections."""


def open_remote(address: Address, *, plain_http: bool = False) -> Remote:
    """Prepare an address for calls; connects to nothing yet.

    Args:
        address: of the artifact.
        plain_http: allow plain HTTP to other hosts than this machine, too.

    Raises:
        RemoteError: `extra_missing` or `remote_insecure`.
    """
    match address:
        case RegistryAddress():
            return Registry(address, plain_http=plain_http)
        case HubAddress():
            return _open_hub(address, plain_http)
        case BucketAddress():
            return BucketLayout(address, plain_http=plain_http)


def _open_hub(address: HubAddress, plain_http: bool) -> Remote:
    try:
        from prompt_store.remotes.hub import Hub
    except ModuleNotFoundError as error:
        message = f'hf:// needs the package {error.name}, which is not installed: pip install "caspl-serve[hub]"'
        raise RemoteError(message, code="extra_missing") from error
    return Hub(address, plain_http=plain_http)
