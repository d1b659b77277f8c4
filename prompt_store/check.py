"""Checks a whole store: every record, chain, checksum and bundle, and every file that does not belong there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from prompt_store.audit import Head
from prompt_store.audit_check import audit_report
from prompt_store.blobs import read_blob
from prompt_store.bundle import read_bundle
from prompt_store.digest import digest_bytes
from prompt_store.disk import Disk, EntryType, list_directory, open_directory, read_file
from prompt_store.durable import TEMPORARY_PREFIX, error_name, is_device_failure
from prompt_store.errors import BundleInvalidError, StoreCorruptError, StoreReadOnlyError
from prompt_store.example_checksums import content_problems
from prompt_store.layout import EXAMPLES, FORMAT_BYTES, NO_STORE, Layout, expected_type, is_store, record_name
from prompt_store.logs import Logs
from prompt_store.record_files import MAX_RECORD_BYTES, next_state, record_numbers, unreadable_log
from prompt_store.records import Record, State, decode_record
from prompt_store.signature_files import is_intact
from prompt_store.signatures import MAX_SIGNATURE_BYTES
from prompt_store.sqlite_files import SIDE_FILES, database_problem, is_index_problem

_NOT_SCANNED: Final = frozenset({"quarantine", "lost+found"})


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or does not belong in the store.

    Attributes:
        path: the file or directory, relative to the store.
        detail: the problem.
        is_damage: True if stored data is lost, unreadable or ignored; False for files that only take space.
        moves: paths that a repair moves to the quarantine.
        moves_records: whether these are records, without which the domain may no longer refer to some bundles.
        restored: the original content of `path`, if it is known.
        audited: the kind and the head of an entry that a repair appends to the audit log.
        is_index: whether `path` is a database whose indexes a repair makes anew.
    """

    path: str
    detail: str
    is_damage: bool = True
    moves: tuple[str, ...] = ()
    moves_records: bool = False
    restored: bytes | None = None
    audited: tuple[str, Head] | None = None
    is_index: bool = False

    @property
    def is_repairable(self) -> bool:
        """Whether a repair changes anything."""
        return bool(self.moves) or self.restored is not None or self.audited is not None or self.is_index


@dataclass(frozen=True)
class DomainCheck:
    """One domain: its intact records, the versions and the live version after them, and the findings."""

    domain: str
    n_records: int
    n_versions: int
    live: int | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class StoreCheck:
    """The domains, findings that concern none of them, and the paths of bundles that belong to no version."""

    domains: tuple[DomainCheck, ...]
    findings: tuple[Finding, ...]
    unreferenced: tuple[str, ...]

    def all_findings(self) -> list[Finding]:
        """Return the findings of the store and of all domains."""
        return [*self.findings, *(finding for domain in self.domains for finding in domain.findings)]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not any(finding.is_damage for finding in self.all_findings())


def check_layout(layout: Layout) -> StoreCheck:
    """Check a store; the caller holds its lock.

    Raises:
        StoreCorruptError: `not_a_store`.
        StoreReadOnlyError: `storage_busy`.
    """
    stray = [*_scan(layout), *check_format(layout), *_check_examples(layout)]  # repairs take this order
    stray += [*_check_signatures(layout), *_check_audit(layout)]
    domains = []
    referenced: set[str] = set()
    for domain in Logs(layout, Disk()).names() if _is_readable(layout.domains) else []:
        state, findings = _check_domain(layout, domain)
        folder = f"domains/{domain}"
        own = [finding for finding in stray if finding.path == folder or finding.path.startswith(f"{folder}/")]
        stray = [finding for finding in stray if finding not in own]
        domains.append(DomainCheck(domain, state.seq, len(state.available()), state.live, (*own, *findings)))
        referenced |= {version.digest for version in state.available()}
    unreferenced = tuple(_relative(layout, path) for digest, path in layout.blob_files() if digest not in referenced)
    found = StoreCheck(tuple(domains), tuple(stray), unreferenced)
    if unreferenced and found.is_sound:
        detail = f"Bundles that belong to no version: {len(unreferenced)}. `caspl store gc` removes them."
        return replace(found, findings=(*stray, Finding("blobs", detail, is_damage=False)))
    return found


def _is_readable(directory: Path) -> bool:
    try:
        list_directory(directory)
    except OSError:
        return False
    return True


def check_format(layout: Layout) -> list[Finding]:
    """Check the FORMAT file; its content is known, so it can be restored in a directory that looks like a store.

    Raises:
        StoreCorruptError: `not_a_store`.
    """
    try:
        problem = None if is_store(layout) else "missing"
    except StoreCorruptError as error:
        if error.code == "not_a_store":
            raise
        problem = "damaged"
    if problem is None:
        return []
    if not _is_readable(layout.domains):
        raise StoreCorruptError(NO_STORE, code="not_a_store")
    return [Finding("FORMAT", f"The file is {problem}.", restored=FORMAT_BYTES)]


def _check_examples(layout: Layout) -> list[Finding]:
    """Check the database of the service's examples; links and directories in its place are found by `_scan`."""
    entries = list_directory(layout.root) if _is_readable(layout.root) else {}
    files = [f"{EXAMPLES}{suffix}" for suffix in ("", *SIDE_FILES) if entries.get(f"{EXAMPLES}{suffix}") == "file"]
    if EXAMPLES not in entries and f"{EXAMPLES}-wal" in files:
        return [Finding(EXAMPLES, "The examples are missing; only their write-ahead log is there.", moves=tuple(files))]
    if EXAMPLES not in files:
        return []
    try:
        problem = database_problem(layout.examples)
        problems = [] if problem else content_problems(layout.examples)
    except StoreCorruptError as error:
        problem, problems = str(error.__cause__ or error), []
    except StoreReadOnlyError as error:
        return [Finding(EXAMPLES, f"The examples cannot be checked: {error}")]
    if problem is not None:
        is_index = is_index_problem(problem)
        moves = () if is_index else tuple(files)
        return [Finding(EXAMPLES, f"The examples are damaged: {problem}.", moves=moves, is_index=is_index)]
    return [Finding(EXAMPLES, problem) for problem in problems]


def _check_signatures(layout: Layout) -> Iterator[Finding]:
    for digest, path in layout.signature_files():
        try:
            with open_directory(path.parent) as directory:
                data = read_file(path.name, max_bytes=MAX_SIGNATURE_BYTES, dir_fd=directory)
        except OSError as error:
            yield Finding(_relative(layout, path), f"The signature is unreadable ({error_name(error)}).")
            continue
        if data is None or not is_intact(path, data):
            detail = f"A signature of {digest} is damaged. Add the signature file again."
            yield Finding(_relative(layout, path), detail, moves=(_relative(layout, path),))


def _check_audit(layout: Layout) -> Iterator[Finding]:
    """Check the audit log, if there is one: the first change begins it."""
    if not os.path.lexists(layout.audit) or not _is_readable(layout.audit) or not _is_readable(layout.domains):
        return  # `_scan` reports what is in its place
    report = audit_report(layout)
    if report.problem:
        detail = f"{report.problem} Intact entries before it: {report.n_entries}."
        yield Finding("audit", detail, moves=("audit",))
        return
    for gap in report.gaps:
        kind = "repair" if gap.is_lost else "commit"
        yield Finding(f"domains/{gap.domain}", gap.detail, is_damage=gap.is_lost, audited=(kind, gap.head))


def _is_movable(parts: tuple[str, ...], found: EntryType) -> bool:
    """Whether a repair moves an entry of the wrong type away.

    A domain's directories are never moved: the domain would disappear, and its bundles would count as unreferenced.
    """
    if parts[0] == "blobs":
        return found != "link" or len(parts) > 2  # a link may lead to all bundles
    return parts[0] in {"FORMAT", "LOCK", "audit", "signatures"} or len(parts) == 4


def _scan(layout: Layout, *parts: str) -> Iterator[Finding]:
    """Find links, leftovers and foreign files below a directory of the store."""
    try:
        entries = list_directory(layout.root.joinpath(*parts))
    except OSError as error:
        yield Finding("/".join(parts), f"The directory is unreadable ({error_name(error)}).")
        return
    for name, found in entries.items():
        expected, path = expected_type(*parts, name), "/".join((*parts, name))
        moves = (path,) if expected and _is_movable((*parts, name), found) else ()
        if found == "link":
            detail = "A symbolic link, which is not followed. Remove it, or put the directory or file itself there."
            yield Finding(path, detail, is_damage=bool(expected), moves=moves)
        elif name.startswith(TEMPORARY_PREFIX) and found == "file":
            yield Finding(path, "Left by an interrupted write.", is_damage=False, moves=(path,))
        elif expected is None:
            yield Finding(path, "Not a file of the store.", is_damage=False)
        elif found != expected:
            yield Finding(path, f"Expected a {expected}, found a {found}.", moves=moves)
        elif found == "directory" and path not in _NOT_SCANNED:
            yield from _scan(layout, *parts, name)


def _check_domain(layout: Layout, domain: str) -> tuple[State, list[Finding]]:
    state, findings = State(), []
    try:
        with open_directory(layout.log(domain)) as log:
            numbers = record_numbers(log)
            try:
                while following := next_state(log, state, scan_all=True):
                    state = following
            except StoreCorruptError as error:
                findings.append(_broken_log(domain, log, state, numbers, error))
    except OSError as error:
        findings.append(Finding(f"domains/{domain}", _problem(unreadable_log(error))))
    for version in state.available():
        try:
            owner = _owner(read_blob(layout, version.digest))
            if owner not in {domain, None}:
                detail = f"Version {version.version} is a bundle for {owner}. Was the directory renamed or copied?"
                findings.append(Finding(f"domains/{domain}", detail))
        except StoreCorruptError as error:
            path = _relative(layout, layout.blob(version.digest))
            live = ", which is live" if version.version == state.live else ""
            is_damaged_file = error.__cause__ is None and os.path.lexists(layout.root / path)
            moves = (path,) if is_damaged_file else ()
            findings.append(Finding(path, f"Version {version.version}{live}: {error}", moves=moves))
    return state, findings


def _owner(data: bytes) -> str | None:
    """The domain that a bundle is for; None if this release cannot read it."""
    try:
        return read_bundle(data).manifest.domain
    except BundleInvalidError:
        return None


def _problem(error: Exception) -> str:
    """The first sentence of an error: the next ones suggest this check."""
    return f"{str(error).partition('. ')[0]}."


def _relative(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()


def _broken_log(domain: str, log: int, state: State, numbers: list[int], error: StoreCorruptError) -> Finding:
    """Describe a log that is intact up to `state`; a repair restores one record, or moves all later ones away."""
    folder, problem = f"domains/{domain}/log", _problem(error)
    if isinstance(error.__cause__, PermissionError) or is_device_failure(error.__cause__):
        return Finding(f"{folder}/{record_name(state.seq + 1)}", problem)  # it may be intact
    for number in (state.seq + 1, state.seq):  # a chain that breaks here may be damage of the record before
        restored = _without_flipped_bit(log, number)
        if restored is not None:
            return Finding(f"{folder}/{record_name(number)}", f"{problem} One bit changed.", restored=restored)
    tail = [number for number in numbers if number > state.seq]
    detail = f"{problem} Intact records before it: {state.seq}; records that cannot be used: {len(tail)}."
    return Finding(
        f"{folder}/{record_name(state.seq + 1)}",
        detail,
        moves=tuple(f"{folder}/{record_name(number)}" for number in tail),
        moves_records=True,
    )


def _bytes(log: int, number: int) -> bytes:
    try:
        return read_file(record_name(number), max_bytes=MAX_RECORD_BYTES, dir_fd=log) or b""
    except OSError:
        return b""


def _read(log: int, number: int) -> Record | None:
    try:
        return decode_record(_bytes(log, number))
    except ValueError:
        return None


def _without_flipped_bit(log: int, number: int) -> bytes | None:
    """The original bytes of a record in which one bit changed; None if the damage is another.

    They are verified with the digest in the next record, or with the record's own checksum.
    """
    damaged, following = _bytes(log, number), _read(log, number + 1)
    for index in range(8 * len(damaged)):
        candidate = bytearray(damaged)
        candidate[index // 8] ^= 1 << index % 8
        data = bytes(candidate)
        if following is not None:
            if digest_bytes(data) == following.prev:
                return data
        elif _has_valid_checksum(data):
            return data
    return None


def _has_valid_checksum(data: bytes) -> bool:
    try:
        return decode_record(data).checksum is not None
    except ValueError:
        return False
