"""Every error that leaves this package, and nothing else.

The tree::

    PromptStoreError
    ├── BundleInvalidError       the bytes are not a bundle we accept; `.code` names the rule
    │   ├── LimitExceededError   larger than we are willing to read
    │   └── DigestMismatchError  not the bytes that were announced
    ├── DomainNotFoundError      no bundle was ever added under that name
    ├── VersionNotFoundError     the domain has no such version (any more)
    ├── VersionExistsError       the content is an older version already; roll back or activate it
    ├── VersionLiveError         the version answers requests and cannot be removed
    ├── ConflictError            somebody else moved first, or there is nowhere to move to
    ├── StoreReadOnlyError       nothing can be written, reading goes on
    ├── StorageFullError         no room; nothing was changed
    └── StoreCorruptError        what is on disk is not what was written

Each message says what was expected, what was found and what to do. Text that came from a client is
repeated only after it passed its own check, so a message may be shown to anybody.
"""


class PromptStoreError(Exception):
    """Base of all errors of this package; `code` is stable and made for programs."""

    code: str = "prompt_store_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class BundleInvalidError(PromptStoreError):
    """The bytes break one rule of the bundle format.

    Args:
        code: the rule, as listed in `docs/bundle-format.md`.
        detail: what was expected, what was found, what to do; never a client's raw text.
        field: where, such as `classes[3].name` or a tensor's name.
        limit: the number that was exceeded, if the rule is a limit.
    """

    code = "bundle_invalid"

    def __init__(self, code: str, detail: str, *, field: str | None = None, limit: int | float | None = None) -> None:
        super().__init__(detail, code=code)
        self.detail = detail
        self.field = field
        self.limit = limit


class LimitExceededError(BundleInvalidError):
    """The bundle is larger than we read; it was not looked into any further."""

    code = "too_large"


class DigestMismatchError(BundleInvalidError):
    """The bytes are not the ones that were announced: a broken or mixed-up transfer."""

    code = "digest_mismatch"


class DomainNotFoundError(PromptStoreError):
    """The store knows no domain of that name."""

    code = "domain_not_found"


class VersionNotFoundError(PromptStoreError):
    """The domain has no such version, or it has been removed."""

    code = "version_not_found"


class VersionExistsError(PromptStoreError):
    """The content is already known as an older version, given by `version`."""

    code = "version_exists"

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class VersionLiveError(PromptStoreError):
    """The version is live and therefore cannot be removed."""

    code = "version_live"


class ConflictError(PromptStoreError):
    """The state is not the one the caller expected; look again and decide anew."""

    code = "conflict"


class StoreReadOnlyError(PromptStoreError):
    """Nothing can be written; codes `store_read_only`, `storage_busy`, `storage_error`, `commit_unknown`.

    `commit_unknown` means: the change may or may not survive a power cut. Send it again after a restart;
    adding the same content twice is harmless.
    """

    code = "store_read_only"


class StorageFullError(PromptStoreError):
    """The file system is full (or too full to be sure); nothing was changed."""

    code = "insufficient_storage"


class StoreCorruptError(PromptStoreError):
    """What is on disk is not what was written; codes `store_corrupt`, `version_corrupt` or `not_a_store`."""

    code = "store_corrupt"
