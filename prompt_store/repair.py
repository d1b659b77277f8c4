"""Repairs a store without deleting anything: damaged files move to the quarantine, under their path in the store."""

import uuid
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prompt_store.audit import Audit
from prompt_store.audit_check import complete
from prompt_store.check import Finding, StoreCheck, check_format, check_layout
from prompt_store.disk import Disk
from prompt_store.durable import TEMPORARY_PREFIX, create_directory, create_file, locked, to_store_error
from prompt_store.errors import PromptStoreError
from prompt_store.layout import Layout
from prompt_store.sqlite_files import rebuild_indexes


@dataclass(frozen=True)
class Repair:
    """One repair: the path and the problem, as in `Finding`, and the change."""

    path: str
    detail: str
    action: str


def check_store(root: Path, *, repair: bool = False, disk: Disk | None = None) -> tuple[StoreCheck, list[Repair]]:
    """Check a store, and repair it if `repair` is True.

    A repair restores records in which one bit changed; otherwise it moves the records from the first damaged one on to
    the quarantine. Damaged bundles, symbolic links and leftovers move there, too. Lost bundles cannot be restored.
    Indexes of the examples are made anew; examples whose own content changed stay, and are found again.

    Returns:
        the state of the store after the repairs, and the repairs.

    Raises:
        StoreCorruptError: `not_a_store`.
        ConflictError: `store_busy`, another process is writing; only with `repair`.
        StoreReadOnlyError, StorageFullError: the store cannot be repaired.
    """
    return check_and_repair(Layout(Path(root).resolve()), disk or Disk(), repair=repair)


def check_and_repair(layout: Layout, disk: Disk, *, repair: bool) -> tuple[StoreCheck, list[Repair]]:
    """`check_store` for a layout and its system calls."""
    check_format(layout)
    repairs: list[Repair] = []
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(layout.lock_file, exclusive=repair))
        except PromptStoreError:  # a read-only store can be checked
            if repair:
                raise
        found = check_layout(layout)
        while repair and (findings := _repairable(found, repairs)):
            kept = found.unreferenced
            repairs += [_repair(layout, disk, one, kept if one.moves_records else ()) for one in findings]
            found = check_layout(layout)
        if any(one.path == "audit" for one in repairs):
            complete(layout, disk)  # begins a new log
    return found, repairs


def _repairable(found: StoreCheck, repairs: list[Repair]) -> list[Finding]:
    done = {(repair.path, repair.detail) for repair in repairs}
    findings = found.all_findings()
    return [one for one in findings if one.is_repairable and (one.path, one.detail) not in done]


def _repair(layout: Layout, disk: Disk, finding: Finding, kept: Iterable[str]) -> Repair:
    """Repair a finding, and give the bundles at `kept` a second name that garbage collection does not remove."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = f"quarantine/{now}-{uuid.uuid4().hex[:8]}"
    try:
        for path in kept:
            _keep(disk, layout.root / path, _place(layout, disk, folder, path))
        if finding.audited is not None:
            kind, head = finding.audited
            Audit(layout, disk).append(kind, head=head)
            action = f"Appended an entry to the audit log: record {head.seq} is the last one."
        elif finding.is_index:
            rebuild_indexes(layout.root / finding.path)
            action = "Made the indexes anew."
        elif finding.restored is None:
            for path in finding.moves:
                _move(disk, layout.root / path, _place(layout, disk, folder, path))
            action = f"Moved to {folder}: {len(finding.moves)}."
        else:
            target = layout.root / finding.path
            _keep(disk, target, _place(layout, disk, folder, finding.path))
            temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
            create_file(disk, temporary, finding.restored)
            _move(disk, temporary, target)
            action = f"Restored; {folder} keeps the damaged one."
    except OSError as error:
        raise to_store_error(error) from error
    return Repair(finding.path, finding.detail, action)


def _place(layout: Layout, disk: Disk, folder: str, path: str) -> Path:
    """The path in the quarantine; creates its directories."""
    target = layout.root / folder / path
    for directory in reversed(target.relative_to(layout.root).parents[:-1]):
        create_directory(disk, layout.root / directory)
    return target


def _keep(disk: Disk, source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        disk.link(source, target)
        disk.sync_dir(target.parent)


def _move(disk: Disk, source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):  # moved for another finding
        disk.rename(source, target)
        for directory in (target.parent, source.parent):
            disk.sync_dir(directory)
