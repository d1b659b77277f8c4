"""The rules for publish, activate, rollback and retire.

Each function returns a `Decide` for `Logs.commit`, which calls it with the current state, and again after a conflict
with another writer.
"""

from prompt_store.blobs import check_free_space, put_blob, read_blob, repair_blob
from prompt_store.disk import Disk
from prompt_store.errors import ConflictError, VersionExistsError, VersionLiveError, VersionNotFoundError
from prompt_store.layout import Layout
from prompt_store.logs import Change, Decide
from prompt_store.records import PublishedVersion, State
from prompt_store.signature_files import put_signature


def find_version(state: State, version: int) -> PublishedVersion:
    """Return a version that is not retired.

    Raises:
        VersionNotFoundError: no such version.
    """
    published = state.find(version)
    if published is None:
        raise VersionNotFoundError(f"Version {int(version)} does not exist or was removed.")
    return published


def publish(
    layout: Layout, disk: Disk, data: bytes, digest: str, *, signature: bytes | None = None, origin: str = ""
) -> Decide:
    """Publish a bundle as the next version; no change if the newest version has the same content.

    The stored copy of content that a version already has is written again if it is damaged. The signature is stored
    before the version can be seen.

    Raises, when called: VersionExistsError, StorageFullError, StoreReadOnlyError, SignatureError.
    """

    def decide(state: State) -> Change | None:
        available = state.available()
        if available and available[-1].digest == digest:
            repair_blob(layout, disk, data, digest)
            _sign(layout, disk, signature, digest)
            return None
        for entry in available:
            if entry.digest == digest:
                repair_blob(layout, disk, data, digest)
                raise VersionExistsError(
                    f"Version {entry.version} already has this content. Activate that version instead.",
                    version=entry.version,
                )
        check_free_space(layout, disk, len(data))
        put_blob(layout, disk, data, digest)
        _sign(layout, disk, signature, digest)
        return Change("publish", PublishedVersion(len(state.published) + 1, digest, len(data), ""), origin)

    return decide


def _sign(layout: Layout, disk: Disk, signature: bytes | None, digest: str) -> None:
    if signature is not None:
        put_signature(layout, disk, signature, digest)


def activate(layout: Layout, version: int, expected_live: int | None) -> Decide:
    """Make a version live; no change if it is live already. The stored bundle must be readable.

    Raises, when called: ConflictError, VersionNotFoundError, StoreCorruptError.
    """

    def decide(state: State) -> Change | None:
        if expected_live is not None and expected_live != (state.live or 0):
            raise ConflictError(
                f"The live version is {state.live or 'none'}, expected {expected_live}. Check the domain and retry."
            )
        published = find_version(state, version)
        if state.live == version:
            return None
        read_blob(layout, published.digest)
        return Change("activate", published)

    return decide


def rollback_target(state: State) -> PublishedVersion:
    """Return the target of a rollback.

    Raises:
        ConflictError: `nothing_to_roll_back`.
    """
    previous = state.rollback_version()
    if previous is None:
        raise ConflictError(
            "No earlier live version to roll back to. Activate a version by number.",
            code="nothing_to_roll_back",
        )
    return find_version(state, previous)


def roll_back(layout: Layout) -> Decide:
    """Make the previously live version live again.

    Raises, when called: ConflictError, StoreCorruptError.
    """

    def decide(state: State) -> Change:
        published = rollback_target(state)
        read_blob(layout, published.digest)
        return Change("rollback", published)

    return decide


def retire(version: int) -> Decide:
    """Retire a version.

    Raises, when called: VersionNotFoundError, VersionLiveError.
    """

    def decide(state: State) -> Change:
        published = find_version(state, version)
        if state.live == version:
            raise VersionLiveError(f"Version {version} is live. Activate another version first.")
        return Change("retire", published)

    return decide
