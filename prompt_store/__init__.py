"""Prompt bundles and the versioned store; independent of torch and of the service."""

from prompt_store.bundle import Bundle, peek_manifest, read_bundle, write_bundle
from prompt_store.collect import GcReport
from prompt_store.digest import check_digest, digest_bytes, is_digest
from prompt_store.errors import (
    BundleInvalidError,
    ConflictError,
    DigestMismatchError,
    DomainNotFoundError,
    LimitExceededError,
    PromptStoreError,
    SignatureError,
    StorageFullError,
    StoreCorruptError,
    StoreReadOnlyError,
    StoreUnavailableError,
    VersionExistsError,
    VersionLiveError,
    VersionNotFoundError,
)
from prompt_store.manifest import (
    BackboneSpec,
    ClassSpec,
    GroupSpec,
    GroupsSpec,
    Manifest,
    Provenance,
    StackSpec,
    check_domain,
    is_domain,
)
from prompt_store.rollouts import Rollout, RolloutPlan
from prompt_store.store import Store
from prompt_store.stores import open_store
from prompt_store.versions import Added, HistoryEntry, LiveInfo, VersionInfo

__all__ = [
    "Added",
    "BackboneSpec",
    "Bundle",
    "BundleInvalidError",
    "ClassSpec",
    "ConflictError",
    "DigestMismatchError",
    "DomainNotFoundError",
    "GcReport",
    "GroupSpec",
    "GroupsSpec",
    "HistoryEntry",
    "LimitExceededError",
    "LiveInfo",
    "Manifest",
    "PromptStoreError",
    "Provenance",
    "Rollout",
    "RolloutPlan",
    "SignatureError",
    "StackSpec",
    "StorageFullError",
    "Store",
    "StoreCorruptError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "VersionExistsError",
    "VersionInfo",
    "VersionLiveError",
    "VersionNotFoundError",
    "check_digest",
    "check_domain",
    "digest_bytes",
    "is_digest",
    "is_domain",
    "open_store",
    "peek_manifest",
    "read_bundle",
    "write_bundle",
]
