"""The live table: the live version of each domain.

The table is immutable and replaced in one assignment, so a reference is a pin: a request keeps the version it looked
up. A replaced version moves to `VersionLoader.recent`; its memory is freed once it is evicted there and its last
request has finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from prompt_store.errors import DomainNotFoundError
from prompt_store.manifest import is_domain
from service.domains.rollouts.tally import Tally
from service.errors import DomainNotLiveError, DomainUnavailableError

if TYPE_CHECKING:
    from prompt_store.rollouts import Rollout
    from prompted_clip.stack import PromptStack
    from service.observability.metrics import Metrics


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """One version of one domain in memory, ready to serve."""

    domain: str
    version: int
    digest: str
    stack: PromptStack


@dataclass(eq=False)
class RunningRollout:
    """A rollout whose candidate is loaded; once `is_decided`, no request takes part: its end is being stored."""

    rollout: Rollout
    candidate: LoadedVersion
    tally: Tally = field(default_factory=Tally)
    is_decided: bool = False


@dataclass(frozen=True, eq=False)
class DomainState:
    """One entry of the table.

    Args:
        live: None when no version is live or the live one could not be loaded.
        error: code of the last failed attempt to load the version that is live in the store; None without a failure.
        since: when `live` was activated, ISO 8601 in UTC; None without a live version.
        running: the rollout beside `live`; a state with another live version has none.
    """

    live: LoadedVersion | None
    error: str | None = None
    since: str | None = None
    running: RunningRollout | None = None

    @property
    def name(self) -> str:
        """`live`, `stale` (an older version serves), `broken` (no version could be loaded) or `idle` (none is live)."""
        if self.live is not None:
            return "stale" if self.error else "live"
        return "broken" if self.error else "idle"


class LiveTable:
    """The state of each domain; `states` is the current table, immutable."""

    def __init__(self, metrics: Metrics) -> None:
        self.states: Mapping[str, DomainState] = MappingProxyType({})
        self._metrics = metrics

    def pin(self, domain: str) -> LoadedVersion:
        """The live version of a domain, pinned for as long as the caller holds it.

        Raises:
            DomainNotFoundError: no such domain.
            DomainNotLiveError: no version is live.
            DomainUnavailableError: the live version could not be loaded.
        """
        state = self.state(domain)
        if state.live is not None:
            return state.live
        if state.error:
            message = f"The live version of {domain} could not be loaded ({state.error}). Activate another version."
            raise DomainUnavailableError(message)
        raise DomainNotLiveError(f"No version of {domain} is live. Activate one with PUT /domains/{domain}/live.")

    def state(self, domain: str) -> DomainState:
        """A domain's state.

        Raises:
            DomainNotFoundError: no such domain.
        """
        if domain not in self.states:
            raise unknown_domain(domain)
        return self.states[domain]

    def running(self, domain: str) -> RunningRollout | None:
        """The rollout of a domain, None if there is none."""
        return self.states[domain].running if domain in self.states else None

    def live(self, domain: str) -> LoadedVersion | None:
        """The live version of a domain, None if there is none."""
        return self.states[domain].live if domain in self.states else None

    def swap(self, domain: str, state: DomainState) -> None:
        """Replace a domain's state in one assignment."""
        before = self.states.get(domain)
        self.states = MappingProxyType({**self.states, domain: state})
        self._metrics.state_changed(before.name if before else None, state.name)
        self._metrics.live_version_changed(domain, _identity(before), _identity(state))
        self._metrics.rollout_changed(domain, _candidate(before), _candidate(state))

    def remove(self, domain: str) -> None:
        """Remove a domain that has no live version."""
        self._metrics.state_changed(self.states[domain].name, None)
        self.states = MappingProxyType({name: state for name, state in self.states.items() if name != domain})


def unknown_domain(domain: str) -> DomainNotFoundError:
    """The error for an unknown domain; quotes the name only if it is a valid one."""
    name = f" {domain}" if is_domain(domain) else ""
    return DomainNotFoundError(f"There is no domain{name}. GET /domains lists all domains.")


def _identity(state: DomainState | None) -> tuple[int, str] | None:
    return (state.live.version, state.live.digest) if state and state.live else None


def _candidate(state: DomainState | None) -> tuple[int, str] | None:
    running = state.running if state else None
    return (running.candidate.version, running.rollout.plan.mode) if running else None
