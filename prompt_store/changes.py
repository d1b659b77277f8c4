"""The rules for publish, activate, rollback, retire and rollouts.

Each function returns a `Decide` for `Logs.commit`, which calls it with the current state, and again after a conflict
with another writer.
"""

from prompt_store.blobs import check_free_space, put_blob, read_blob, repair_blob
from prompt_store.disk import Disk
from prompt_store.errors import ConflictError, VersionExistsError, VersionLiveError, VersionNotFoundError
from prompt_store.layout import Layout
from prompt_store.logs import Change, Decide
from prompt_store.records import PublishedVersion, State
from prompt_store.rollouts import Event, RolloutChange, RolloutPlan
from prompt_store.signature_files import put_signature
from prompt_store.versions import LiveInfo, VersionInfo


def live_info(state: State) -> LiveInfo | None:
    """Return the live version, or None."""
    if state.live is None:
        return None
    return LiveInfo(state.live, state.published[state.live - 1].digest, state.seq, state.live_since, state.rollout)


def version_infos(state: State) -> list[VersionInfo]:
    """Return the versions that are not retired, oldest first."""
    return [
        VersionInfo(entry.version, entry.digest, entry.size_bytes, entry.at, entry.version == state.live)
        for entry in state.available()
    ]


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


def activate(
    layout: Layout, version: int, expected_live: int | None, completes: tuple[int, str] | None = None
) -> Decide:
    """Make a version live; no change if it is live already without a rollout. The stored bundle must be readable.

    With `completes`, the number of a rollout's start and the figures, only if that rollout runs.

    Raises, when called: ConflictError, VersionNotFoundError, StoreCorruptError.
    """

    def decide(state: State) -> Change | None:
        if expected_live is not None and expected_live != (state.live or 0):
            raise ConflictError(
                f"The live version is {state.live or 'none'}, expected {expected_live}. Check the domain and retry."
            )
        published = find_version(state, version)
        if state.live == version and state.rollout is None:
            return None
        read_blob(layout, published.digest)
        if completes is None:
            return Change("activate", published)
        started, detail = completes
        if state.rollout is None or state.rollout.seq != started:
            raise ConflictError("The rollout has ended. Read the domain again.")
        change = RolloutChange(event="complete", version=version, digest=published.digest, detail=detail)
        return Change("activate", published, rollout=change)

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


def start_rollout(plan: RolloutPlan, expected_live: int | None) -> Decide:
    """Start a rollout beside the live version.

    Raises, when called: ConflictError, VersionNotFoundError, VersionLiveError.
    """

    def decide(state: State) -> Change:
        candidate = find_version(state, plan.version)
        if state.live is None or (expected_live is not None and expected_live != state.live):
            raise ConflictError(f"The live version is {state.live or 'none'}. Check the domain and retry.")
        if state.rollout is not None:
            message = f"A rollout of version {state.rollout.plan.version} is running. Stop it first."
            raise ConflictError(message, code="rollout_running")
        if plan.version == state.live:
            raise VersionLiveError(f"Version {plan.version} is live. Roll out another version.")
        change = RolloutChange(event="start", version=plan.version, digest=candidate.digest, plan=plan)
        return Change("activate", find_version(state, state.live), rollout=change)

    return decide


def end_rollout(started: int | None, event: Event, detail: str) -> Decide:
    """End the rollout that record `started` began, or any; no change if it does not run."""

    def decide(state: State) -> Change | None:
        running = state.rollout
        if running is None or state.live is None or started not in {None, running.seq}:
            return None
        change = RolloutChange(event=event, version=running.plan.version, digest=running.digest, detail=detail)
        return Change("activate", find_version(state, state.live), rollout=change)

    return decide


def retire(version: int) -> Decide:
    """Retire a version.

    Raises, when called: VersionNotFoundError, VersionLiveError, ConflictError.
    """

    def decide(state: State) -> Change:
        published = find_version(state, version)
        if state.live == version:
            raise VersionLiveError(f"Version {version} is live. Activate another version first.")
        if state.rollout is not None and state.rollout.plan.version == version:
            message = f"A rollout of version {version} is running. Stop it first."
            raise ConflictError(message, code="rollout_running")
        return Change("retire", published)

    return decide
