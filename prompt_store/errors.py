"""The errors of this package.

The tree::

    PromptStoreError
    ├── BundleInvalidError       not a valid bundle; `.code` names the rule
    │   ├── LimitExceededError   larger than the size limit
    │   └── DigestMismatchError  the bytes do not match the expected digest
    ├── DomainNotFoundError      no such domain
    ├── VersionNotFoundError     no such version, or it was removed
    ├── VersionExistsError       an older version already has this content
    ├── VersionLiveError         a live version cannot be removed
    ├── ConflictError            a conflicting update, or no version to roll back to
    ├── StoreReadOnlyError       the store cannot be written; reads still work
    │   └── StoreUnavailableError  a store in a bucket cannot be reached; reads use the local copy
    ├── StorageFullError         the disk is full; nothing was changed
    ├── StoreCorruptError        damaged data on disk
    ├── SignatureError           a missing or invalid signature of a bundle, or an unusable key
    └── RemoteError              a registry or hub did not deliver or accept a bundle

Messages never repeat unvalidated client input, so they are safe to show to any caller.
"""


class PromptStoreError(Exception):
    """Base class; `code` is stable and machine-readable."""

    code: str = "prompt_store_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class BundleInvalidError(PromptStoreError):
    """The bytes violate a rule of the bundle format.

    Args:
        code: the rule, as listed in `docs/bundle-format.md`.
        detail: the message; never contains raw client input.
        field: location of the error, such as `classes[3].name` or a tensor name.
        limit: the exceeded limit, if the rule is a limit.
    """

    code = "bundle_invalid"

    def __init__(self, code: str, detail: str, *, field: str | None = None, limit: int | float | None = None) -> None:
        super().__init__(detail, code=code)
        self.detail = detail
        self.field = field
        self.limit = limit


class LimitExceededError(BundleInvalidError):
    """The bundle exceeds the size limit; it was not parsed."""

    code = "too_large"


class DigestMismatchError(BundleInvalidError):
    """The bytes do not match the expected digest."""

    code = "digest_mismatch"


class DomainNotFoundError(PromptStoreError):
    """The store has no such domain."""

    code = "domain_not_found"


class VersionNotFoundError(PromptStoreError):
    """The domain has no such version, or it was removed."""

    code = "version_not_found"


class VersionExistsError(PromptStoreError):
    """An older version, `version`, already has this content."""

    code = "version_exists"

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class VersionLiveError(PromptStoreError):
    """The version is live and cannot be removed."""

    code = "version_live"


class ConflictError(PromptStoreError):
    """The domain changed since the caller read it; read it again and retry."""

    code = "conflict"


class StoreReadOnlyError(PromptStoreError):
    """A write failed; codes `store_read_only`, `storage_busy`, `write_failed`, `storage_error`, `commit_unknown`.

    `storage_error`: the disk failed, and the store stays read-only until it is opened again. `commit_unknown`: the
    change may not survive a power failure. Retry after a restart; adding a bundle is idempotent.
    """

    code = "store_read_only"


class StoreUnavailableError(StoreReadOnlyError):
    """A request to the bucket of a store failed; what was read before is still served.

    Codes: `store_unavailable`, no change was made; `store_denied`, credentials or permissions; `clock_skew`; and
    `commit_unknown`, the change was made or not, which the next read shows. Retry later; adding a bundle is idempotent.
    """

    code = "store_unavailable"


class StorageFullError(PromptStoreError):
    """Not enough free disk space; nothing was changed."""

    code = "insufficient_storage"


class StoreCorruptError(PromptStoreError):
    """Damaged data on disk; codes `store_corrupt`, `version_corrupt` or `not_a_store`."""

    code = "store_corrupt"


class SignatureError(PromptStoreError):
    """A bundle's signature is not accepted.

    Codes `signature_required` (there is none), `signature_invalid`, `signature_exists`, `key_invalid` or
    `key_encrypted`.
    """

    code = "signature_invalid"


class RemoteError(PromptStoreError):
    """A registry or hub did not deliver or accept a bundle; nothing was changed here.

    Codes `address_invalid`, `credentials_invalid` (an unusable configuration of docker), `extra_missing`,
    `media_type_unknown` (not a bundle), `remote_failed` (an error of the server), `remote_insecure` (plain HTTP),
    `remote_not_found`, `remote_offline`, `remote_unauthorized`, `remote_unreachable` or `repository_taken`.
    """

    code = "remote_failed"
