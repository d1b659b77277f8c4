"""The audit log: one chain of numbered entries for a whole store.

An entry names the head of one domain's log after a change: the record's number and digest, which cover all records
before it. The records themselves have the time, the actor and the action. Further entries are changes of the service's
API keys, and repairs of the store. Each entry has the digest of the entry before it and its own checksum.

An entry is written after the change that it describes. A writer that is killed in between leaves a change without an
entry, which `audit_check` finds, and the domain's next entry covers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompt_store.digest import DIGEST_PATTERN, digest_bytes
from prompt_store.disk import Disk, list_directory, open_directory, read_file
from prompt_store.durable import create_directory, create_file, error_name, is_transient, to_store_error
from prompt_store.errors import PromptStoreError, StoreCorruptError
from prompt_store.layout import Layout, is_record_name, record_name
from prompt_store.records import GENESIS, MAX_ACTOR_CHARS, State, checksum_matches, with_checksum
from prompt_store.strict_json import StrictJsonError, load_object

logger = logging.getLogger(__name__)

MAX_ENTRY_BYTES: Final = 16 * 1024
Digest = Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]


class Head(BaseModel):
    """The last record of a domain's log; `seq` is 0 and `digest` that of the genesis for an empty log."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    domain: str
    seq: Annotated[int, Field(ge=0)]
    digest: Digest


class KeyChange(BaseModel):
    """A change of one API key of the service; `fields` is the digest of its scopes, domains, validity and rates."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    id: str
    change: Literal["added", "changed", "removed"]
    fields: Digest
    scopes: str = ""


class Entry(BaseModel):
    """One entry: `head` of a domain after a change or a repair, or the change of a key."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    seq: Annotated[int, Field(ge=1)]
    prev: Digest
    at: str
    kind: Literal["commit", "repair", "key"]
    head: Head | None = None
    key: KeyChange | None = None
    actor: Annotated[str, Field(max_length=MAX_ACTOR_CHARS)] = ""
    checksum: Digest


@dataclass(frozen=True)
class AuditLog:
    """The intact entries from the first on, the digest of the last one, and the problem after it, if there is one."""

    entries: tuple[Entry, ...] = ()
    head: str = GENESIS
    problem: str = ""


class Audit:
    """Appends to the audit log of one store; safe for several processes on one directory."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk

    def committed(self, domain: str, state: State) -> PromptStoreError | None:
        """Append the head of a domain after a commit.

        The change is durable already, so an error is logged and returned, not raised: the next entry of the domain,
        `Store.complete_audit` and a repair cover it.
        """
        try:
            self.append("commit", head=Head(domain=domain, seq=state.seq, digest=state.head))
        except PromptStoreError as error:
            facts = {"domain": domain, "code": error.code, "detail": str(error)}
            logger.error("audit.incomplete", extra=facts)  # noqa: TRY400  the message is complete
            return error
        return None

    def append(self, kind: str, *, head: Head | None = None, key: KeyChange | None = None, actor: str = "") -> None:
        """Append an entry durably.

        It follows the last entry, whatever its content: damage stays visible, and does not prevent later entries.

        Raises:
            StorageFullError: not enough space.
            StoreReadOnlyError: the store is not writable or the disk failed.
            StoreCorruptError: the directory is a link or a file, or the last entry is unreadable.
        """
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        about = {"head": head and head.model_dump(), "key": key and key.model_dump()}
        while True:
            seq, prev = self._last()
            if seq == 0:  # otherwise the writer of the first entry has synced it
                create_directory(self._disk, self._layout.audit)
            fields = {"seq": seq + 1, "prev": prev, "at": at, "kind": kind, "actor": actor, **about}
            if create_file(self._disk, self._layout.audit / record_name(seq + 1), with_checksum(fields)):
                return

    def _last(self) -> tuple[int, str]:
        """The number of the last entry and the digest of its bytes."""
        try:
            numbers = entry_numbers(self._layout)
            if not numbers:
                return 0, GENESIS
            return numbers[-1], digest_bytes(read_entry(self._layout, numbers[-1]))
        except OSError as error:
            if is_transient(error):
                raise to_store_error(error) from error
            problem = f"The audit log is unreadable ({error_name(error)}). Run `caspl store check`."
            raise StoreCorruptError(problem) from error


def entry_numbers(layout: Layout) -> list[int]:
    """Return the numbers of all entries, sorted; none without an audit log.

    Raises:
        OSError: the directory cannot be read.
    """
    try:
        return sorted(int(name[:10]) for name in list_directory(layout.audit) if is_record_name(name))
    except FileNotFoundError:
        return []


def read_entry(layout: Layout, number: int) -> bytes:
    """Return the bytes of an entry.

    Raises:
        OSError: it is missing or cannot be read.
    """
    with open_directory(layout.audit) as directory:
        data = read_file(record_name(number), max_bytes=MAX_ENTRY_BYTES, dir_fd=directory)
    if data is None:
        raise FileNotFoundError(2, "missing")
    return data


def read_audit(layout: Layout, on_entry: Callable[[int, str], None] = lambda _, __: None) -> AuditLog:
    """Read the entries up to the first problem; `on_entry` gets the number and digest of each.

    Raises:
        StoreReadOnlyError: `storage_busy`.
    """
    entries: list[Entry] = []
    head, number = GENESIS, 0
    try:
        numbers = entry_numbers(layout)
        for number in range(1, (numbers or [0])[-1] + 1):
            data = read_entry(layout, number)
            entries.append(_decoded(data, number, head))
            head = digest_bytes(data)
            on_entry(number, head)
    except OSError as error:
        if is_transient(error):
            raise to_store_error(error) from error
        why = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error_name(error)})"
        return AuditLog(tuple(entries), head, f"Entry {number} is {why}." if number else f"The audit log is {why}.")
    except ValueError as error:
        return AuditLog(tuple(entries), head, f"Entry {number} {error}.")
    return AuditLog(tuple(entries), head)


def _decoded(data: bytes, number: int, prev: str) -> Entry:
    """Parse an entry and verify it.

    Raises:
        ValueError: it is damaged; the message completes "Entry n ".
    """
    try:
        entry = Entry.model_validate(load_object(data))
    except (ValidationError, StrictJsonError) as error:
        raise ValueError("is damaged: it is not a valid entry") from error
    if not checksum_matches(data, entry.checksum):
        raise ValueError("is damaged: its checksum does not match")
    if entry.seq != number:
        raise ValueError(f"is in the wrong place: it is entry {entry.seq}")
    if entry.prev != prev:
        raise ValueError("does not continue the chain: it, or the entry before it, was replaced")
    if (entry.head is None) == (entry.kind != "key") or (entry.key is None) == (entry.kind == "key"):
        raise ValueError("is damaged: it has the fields of another kind")
    return entry
