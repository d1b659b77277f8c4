"""What may be published, activated, rolled back to and retired: the rules, apart from the commit.

Each function returns a `Decide` for `Logs.commit`, which calls it with the state as of that moment, and again when
another writer was faster. Knows states and blobs. Does not know locks or record files.
"""

from prompt_store.blobs import check_room, heal_blob, put_blob, read_blob
from prompt_store.durable import Disk
from prompt_store.errors import ConflictError, VersionExistsError, VersionLiveError, VersionNotFoundError
from prompt_store.layout import Layout
from prompt_store.logs import Change, Decide
from prompt_store.records import Published, State


def found(state: State, version: int) -> Published:
    """Return a version that is not retired.

    Raises:
        VersionNotFoundError: there is none of that number.
    """
    published = state.find(version)
    if published is None:
        raise VersionNotFoundError(
            f"expected one of {len(state.available())} versions, found no version {int(version)} (any more); "
            "list the versions"
        )
    return published


def publish(layout: Layout, disk: Disk, data: bytes, digest: str) -> Decide:
    """Publish these bytes as the next version; no change when the newest version holds them already.

    Raises, when called: VersionExistsError, StorageFullError, StoreReadOnlyError.
    """

    def decide(state: State) -> Change | None:
        available = state.available()
        if available and available[-1].digest == digest:
            heal_blob(layout, disk, data, digest)
            return None
        for entry in available:
            if entry.digest == digest:
                raise VersionExistsError(
                    f"expected new content, found that of version {entry.version}; activate that version instead",
                    version=entry.version,
                )
        check_room(layout, disk, len(data))
        put_blob(layout, disk, data, digest)
        return Change("publish", Published(len(state.published) + 1, digest, len(data), ""))

    return decide


def activate(layout: Layout, version: int, expected_live: int | None) -> Decide:
    """Make a version live; no change when it is. What cannot be read never goes live.

    Raises, when called: ConflictError, VersionNotFoundError, StoreCorruptError.
    """

    def decide(state: State) -> Change | None:
        if expected_live is not None and expected_live != (state.live or 0):
            raise ConflictError(
                f"expected version {expected_live} to be live, found {state.live or 'none'}; look again and decide"
            )
        published = found(state, version)
        if state.live == version:
            return None
        read_blob(layout, published.digest)
        return Change("activate", published)

    return decide


def rollback_target(state: State) -> Published:
    """Return the version that a rollback would make live.

    Raises:
        ConflictError: `nothing_to_roll_back`.
    """
    previous = state.previous_live()
    if previous is None:
        raise ConflictError(
            "expected an earlier version that was live, found none; activate a version by its number",
            code="nothing_to_roll_back",
        )
    return found(state, previous)


def roll_back(layout: Layout) -> Decide:
    """Make live what was live before.

    Raises, when called: ConflictError, StoreCorruptError.
    """

    def decide(state: State) -> Change:
        published = rollback_target(state)
        read_blob(layout, published.digest)
        return Change("rollback", published)

    return decide


def retire(version: int) -> Decide:
    """Take a version out of use.

    Raises, when called: VersionNotFoundError, VersionLiveError.
    """

    def decide(state: State) -> Change:
        published = found(state, version)
        if state.live == version:
            raise VersionLiveError(
                f"expected a version that is not live, found that {version} is; activate another one first"
            )
        return Change("retire", published)

    return decide
