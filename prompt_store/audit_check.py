"""Verifies the audit log against the logs of all domains, and lists its changes."""

from dataclasses import dataclass, field, replace

from prompt_store.audit import Audit, Entry, Head, read_audit
from prompt_store.disk import Disk, open_directory
from prompt_store.errors import StoreCorruptError
from prompt_store.layout import Layout
from prompt_store.logs import Logs
from prompt_store.record_files import next_state, read_records, unreadable_log
from prompt_store.records import GENESIS, Record, State


@dataclass(frozen=True)
class AuditRow:
    """One change.

    Attributes:
        entry: number of the entry that covers it; None if none does.
        at: ISO 8601 in UTC; of the entry, if the record is missing.
        actor: user or API key.
        action: `publish`, `fit`, `create`, `activate`, `rollback`, `retire`, `rollout start`, `rollout stop`,
            `rollout rollback`, `repair`, `key added`, `key changed` or `key removed`; `missing` for a record that is no
            longer there, or was replaced.
        domain: empty for keys.
        record: number of the domain's record; None for keys.
        version: the version acted on, a rollout's candidate; None for keys, repairs and missing records.
        digest: of the bundle; empty without a version.
        key: id of the API key, with its scopes; empty for domains.
    """

    entry: int | None
    at: str
    actor: str
    action: str
    domain: str = ""
    record: int | None = None
    version: int | None = None
    digest: str = ""
    key: str = ""


@dataclass(frozen=True)
class Gap:
    """A domain whose log and the audit log disagree.

    Attributes:
        domain: the domain.
        detail: the difference.
        head: the last intact record of its log.
        is_lost: records that the audit log names are missing or replaced; else the last records have no entry.
    """

    domain: str
    detail: str
    head: Head
    is_lost: bool


@dataclass(frozen=True)
class AuditReport:
    """The changes, and what is wrong.

    Attributes:
        rows: all changes, in the order of the entries; those without an entry come last.
        n_entries: number of intact entries.
        head: digest of the last of them.
        problem: damage of the audit log itself; empty if it is intact.
        gaps: the domains that do not agree with it.
        damaged: the problem of each domain whose own log is damaged.
        digests: digest of each intact entry, by number.
    """

    rows: tuple[AuditRow, ...]
    n_entries: int
    head: str
    problem: str
    gaps: tuple[Gap, ...]
    damaged: dict[str, str]
    digests: dict[int, str] = field(repr=False)

    def problems(self, expected: str | None = None) -> list[str]:
        """Return everything that is wrong, one sentence each.

        Args:
            expected: an entry that must be in the log, as `number:digest`; such as the last entry of an earlier report.
        """
        found = [self.problem] if self.problem else []
        found += [f"{domain}: {problem}" for domain, problem in sorted(self.damaged.items())]
        found += [f"{gap.domain}: {gap.detail}" for gap in self.gaps]
        if expected is not None:
            number, _, digest = expected.partition(":")
            if not number.isdecimal() or self.digests.get(int(number)) != digest:
                found.append(f"Entry {expected} is not in the log: entries were removed from its end, or replaced.")
        return found


@dataclass(frozen=True)
class _DomainLog:
    """The intact records of a domain, the digest of each by number, and the problem after them, if there is one."""

    state: State
    records: list[Record]
    digests: dict[int, str]
    problem: str = ""

    @property
    def head(self) -> tuple[int, str]:
        return self.state.seq, self.state.head


def audit_report(layout: Layout) -> AuditReport:
    """Verify the audit log of a store.

    Raises:
        StoreCorruptError: the directory of all domains cannot be read.
        StoreReadOnlyError: `storage_busy`.
    """
    digests: dict[int, str] = {}
    found = read_audit(layout, digests.__setitem__)
    logs = {name: _read_domain(layout, name) for name in Logs(layout, Disk()).names()}
    covered: dict[str, int] = {}
    rows: list[AuditRow] = []
    for entry in found.entries:
        if entry.key is not None:
            key, action = entry.key, f"key {entry.key.change}"
            scopes = f" ({key.scopes})" if key.scopes else ""
            rows.append(AuditRow(entry.seq, entry.at, entry.actor, action, key=f"{key.id}{scopes}"))
        elif entry.head is not None:
            rows += _rows(entry, entry.head, logs.get(entry.head.domain), covered)
    gaps = _gaps(found.entries, logs, is_complete=not found.problem)
    for domain, log in sorted(logs.items()):
        last = covered.get(domain, 0)
        rows += [_row(None, domain, record) for record in log.records[last:]]
    damaged = {domain: log.problem for domain, log in logs.items() if log.problem}
    return AuditReport(tuple(rows), len(found.entries), found.head, found.problem, tuple(gaps), damaged, digests)


def complete(layout: Layout, disk: Disk) -> tuple[int, str]:
    """Append an entry for every domain whose last records have none, such as after a kill.

    Returns:
        the number of entries, and the damage that was found; empty without damage.

    Raises: as `audit_report` and `Audit.append`.
    """
    report = audit_report(layout)
    missing = [gap for gap in report.gaps if not gap.is_lost]  # none if the log is damaged
    for gap in missing:
        Audit(layout, disk).append("commit", head=gap.head)
    found = replace(report, gaps=tuple(gap for gap in report.gaps if gap.is_lost))
    return len(missing), " ".join(found.problems())


def _read_domain(layout: Layout, domain: str) -> _DomainLog:
    state, digests, records, problem = State(), {}, [], ""
    try:
        with open_directory(layout.log(domain)) as log:
            try:
                while following := next_state(log, state, scan_all=True):
                    state = following
                    digests[state.seq] = state.head
            except StoreCorruptError as error:
                problem = str(error)
            # Another record may have followed since: its digest is not needed to read these.
            records = read_records(log, state, first=1, last=state.seq) if state.seq else []
    except OSError as error:
        unreadable = unreadable_log(error)
        if not isinstance(unreadable, StoreCorruptError):
            raise unreadable from error
        problem = str(unreadable)
    return _DomainLog(state, records, digests, problem)


def _rows(entry: Entry, head: Head, log: _DomainLog | None, covered: dict[str, int]) -> list[AuditRow]:
    """The changes of one entry: the records since the domain's previous one."""
    domain, last = head.domain, covered.get(head.domain, 0)
    if entry.kind == "repair":
        covered[domain] = head.seq
        return [AuditRow(entry.seq, entry.at, entry.actor, "repair", domain, head.seq)]
    covered[domain] = max(last, head.seq)
    if log and log.digests.get(head.seq) == head.digest:
        return [_row(entry.seq, domain, record) for record in log.records[last : head.seq]]
    numbers = range(last + 1, head.seq + 1)  # moved away by a repair, removed or replaced
    return [AuditRow(entry.seq, entry.at, entry.actor, "missing", domain, number) for number in numbers]


def _row(entry: int | None, domain: str, record: Record) -> AuditRow:
    if record.rollout and not record.is_activation:
        action, target = f"rollout {record.rollout.event}", record.rollout
        return AuditRow(entry, record.at, record.actor, action, domain, record.seq, target.version, target.digest)
    action = record.origin if record.action == "publish" and record.origin else record.action
    return AuditRow(entry, record.at, record.actor, action, domain, record.seq, record.version, record.digest)


def _gaps(entries: tuple[Entry, ...], logs: dict[str, _DomainLog], *, is_complete: bool) -> list[Gap]:
    """The domains whose records are not those that the entries name; a damaged log is in `damaged`."""
    named: dict[str, list[tuple[int, Head]]] = {domain: [] for domain in logs}
    for entry in entries:
        if (head := entry.head) is not None:
            before = named.get(head.domain, [])
            if entry.kind == "repair":
                before = [one for one in before if one[1].seq < head.seq]
            named[head.domain] = [*before, (entry.seq, head)]
    gaps = []
    for domain, heads in sorted(named.items()):
        log = logs.get(domain) or _DomainLog(State(), [], {})
        if log.problem:
            continue
        seq, digest = log.head
        head = Head(domain=domain, seq=seq, digest=digest)
        if problem := next(filter(None, (_loss(number, one, log) for number, one in heads)), ""):
            gaps.append(Gap(domain, problem, head, is_lost=True))
            continue
        last = max((one.seq for _, one in heads), default=0)
        if last < seq and is_complete:
            which = f"Record {seq} has" if last + 1 == seq else f"Records {last + 1} to {seq} have"
            detail = (
                f"{which} no entry in the audit log: the writer was killed before it was written, was an earlier "
                "release, or the end of the audit log was removed."
            )
            gaps.append(Gap(domain, detail, head, is_lost=False))
    return gaps


def _loss(number: int, named: Head, log: _DomainLog) -> str:
    """The problem with the record that an entry names; empty without one."""
    found = log.digests.get(named.seq, GENESIS if named.seq == 0 else None)
    if found is None:
        return f"Record {named.seq}, which entry {number} of the audit log names, is missing: it was removed."
    if found != named.digest:
        return f"Record {named.seq} is not the one that entry {number} of the audit log names: it was replaced."
    return ""
