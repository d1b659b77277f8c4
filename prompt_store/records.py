"""A domain's log: numbered commit records, each containing the digest of its predecessor and its own checksum.

Creating record n+1 *is* the commit. There is no separate state file: the state is computed from records 1..n.

Records of format 1.0 have no checksum. They are read as before: the chain protects each of them except the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompt_store.digest import DIGEST_PATTERN, digest_bytes
from prompt_store.rollouts import Rollout, RolloutChange
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object
from prompt_store.versions import HistoryEntry

MAX_ACTOR_CHARS: Final = 128
GENESIS: Final = "sha256:" + "0" * 64

Action = Literal["publish", "activate", "rollback", "retire"]


class Record(BaseModel):
    """One commit.

    Attributes:
        version: the version acted on.
        from_version: the version that was live before.
        origin: how a published bundle was made, if not uploaded: `fit` or `create`, by the service.
        rollout: see `prompt_store.rollouts`; None for all other changes, and then not in the record's bytes.
        checksum: digest of the record's bytes with an empty checksum; None in format 1.0.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    seq: Annotated[int, Field(ge=1)]
    prev: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]
    action: Action
    version: Annotated[int, Field(ge=1)]
    digest: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]
    size_bytes: Annotated[int, Field(ge=0)]
    from_version: int | None = None
    at: str
    actor: Annotated[str, Field(max_length=MAX_ACTOR_CHARS)] = ""
    origin: Annotated[str, Field(max_length=32)] = ""
    rollout: RolloutChange | None = None
    checksum: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")] | None = None

    @property
    def is_activation(self) -> bool:
        """Whether it makes a version live: it has the action, and is not one of a rollout's other events."""
        return self.action == "activate" and (self.rollout is None or self.rollout.event == "complete")


@dataclass(frozen=True)
class PublishedVersion:
    """One version, as recorded when it was published."""

    version: int
    digest: str
    size_bytes: int
    at: str
    is_retired: bool = False


@dataclass(frozen=True)
class State:
    """The state of a domain after records 1..`seq`.

    Attributes:
        seq: number of the last record; 0 for an empty log.
        head: digest of the last record's bytes.
        published: all versions ever published; version n is `published[n - 1]`.
        live_history: versions in the order they went live, the last one is live; a rollback removes entries.
        live_since: when the last one went live, ISO 8601 in UTC; empty if there is none.
        rollout: the running rollout; every change of the live version ends it, and so does retiring its candidate.
    """

    seq: int = 0
    head: str = GENESIS
    published: tuple[PublishedVersion, ...] = ()
    live_history: tuple[int, ...] = ()
    live_since: str = ""
    rollout: Rollout | None = None

    @property
    def live(self) -> int | None:
        """The live version, if any."""
        return self.live_history[-1] if self.live_history else None

    def find(self, version: int) -> PublishedVersion | None:
        """Return the version, or None if it was never published or is retired."""
        if not 1 <= version <= len(self.published):
            return None
        found = self.published[version - 1]
        return None if found.is_retired else found

    def available(self) -> list[PublishedVersion]:
        """Return all versions that are not retired, oldest first."""
        return [entry for entry in self.published if not entry.is_retired]

    def rollback_version(self) -> int | None:
        """Return the target of a rollback: the most recently live version that still exists."""
        for version in reversed(self.live_history):
            if version != self.live and self.find(version) is not None:
                return version
        return None

    def after(self, record: Record, record_digest: str) -> "State":
        """Return the state after one more record.

        Raises:
            ValueError: the record is not a valid successor.
        """
        if record.seq != self.seq + 1 or record.prev != self.head:
            raise ValueError("it does not continue the chain of records")
        published, live_history, live_since = self.published, self.live_history, self.live_since
        rollout = self.rollout
        if record.action == "publish":
            if record.version != len(published) + 1:
                raise ValueError("it skips a version number")
            published = (*published, PublishedVersion(record.version, record.digest, record.size_bytes, record.at))
        else:
            found = self.find(record.version)
            if found is None or found.digest != record.digest:
                raise ValueError("it refers to an unknown version")
            if record.is_activation:
                live_history, live_since, rollout = (*live_history, record.version), record.at, None
            elif record.action == "activate":
                rollout = self._rollout_after(record)
            elif record.action == "rollback":
                live_history, live_since, rollout = _roll_back_to(live_history, record.version), record.at, None
            else:
                rollout = None if rollout and rollout.plan.version == record.version else rollout
                retired = replace(found, is_retired=True)
                published = (*published[: record.version - 1], retired, *published[record.version :])
        return State(record.seq, record_digest, published, live_history, live_since, rollout)

    def _rollout_after(self, record: Record) -> Rollout | None:
        """The running rollout after a record that changes only that."""
        change = record.rollout
        if record.version != self.live or change is None:
            raise ValueError("it is a rollout beside a version that is not live")
        if change.event != "start":
            return None
        candidate = self.find(change.version)
        if change.plan is None or candidate is None or candidate.digest != change.digest:
            raise ValueError("it starts a rollout of an unknown version")
        return Rollout(record.seq, change.plan, change.digest, record.at, record.actor)


def _roll_back_to(live_history: tuple[int, ...], version: int) -> tuple[int, ...]:
    shorter = live_history[:-1]
    while shorter and shorter[-1] != version:
        shorter = shorter[:-1]
    if not shorter:
        raise ValueError("it rolls back to a version that was never live")
    return shorter


def history_entry(record: Record) -> HistoryEntry:
    """Return a record as an entry of the history."""
    change, action, to_version = record.rollout, str(record.action), record.version
    if change and not record.is_activation:
        action, to_version = f"rollout {change.event}", change.version
    from_version = {"publish": None, "retire": record.version}.get(action, record.from_version)
    return HistoryEntry(
        record.at,
        record.actor,
        action,
        from_version,
        None if action == "retire" else to_version,
        record.seq,
        change.detail if change else "",
    )


def clean_actor(actor: str) -> str:
    """Return the name with unprintable characters replaced, truncated to the maximum length."""
    return "".join(char if char.isprintable() else "?" for char in actor[:MAX_ACTOR_CHARS])


def with_checksum(fields: Mapping[str, object]) -> bytes:
    """Encode as canonical JSON with a `checksum`: the digest of the bytes with an empty one."""
    data = dump_canonical({**fields, "checksum": ""})
    return data.replace(b'"checksum":""', f'"checksum":"{digest_bytes(data)}"'.encode(), 1)


def checksum_matches(data: bytes, checksum: str) -> bool:
    """Whether this is the checksum of the bytes that contain it."""
    return digest_bytes(data.replace(checksum.encode(), b"", 1)) == checksum


def encode_record(record: Record) -> bytes:
    """Encode as canonical JSON with the record's checksum."""
    return with_checksum(record.model_dump(mode="python", exclude={"rollout"} if record.rollout is None else None))


def decode_record(data: bytes) -> Record:
    """Parse a record and verify its checksum.

    Raises:
        ValueError: not a valid record; the message completes "Record n is damaged: ".
    """
    try:
        record = Record.model_validate(load_object(data))
    except (ValidationError, StrictJsonError) as error:
        raise ValueError("it is not a valid record") from error
    if record.checksum is None:
        if record.model_extra:  # format 1.0 had no other fields: the name of `checksum` is damaged
            raise ValueError("it has unknown fields and no checksum")
    elif not checksum_matches(data, record.checksum):
        raise ValueError("its checksum does not match")
    return record
