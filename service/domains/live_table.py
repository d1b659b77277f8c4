"""Which stack answers for which domain at this moment.

The table is immutable and replaced by one assignment, so a look-up is a pin: whoever holds a stack keeps that version
to the end, and its memory goes when the last holder is done. Knows nothing of the store, HTTP or the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from prompt_store.errors import DomainNotFoundError
from prompt_store.manifest import is_domain
from service.errors import DomainNotLiveError, DomainUnavailableError

if TYPE_CHECKING:
    from prompted_clip.stack import PromptStack


@dataclass(frozen=True, eq=False)
class ServedStack:
    """One version of one domain, ready to answer: what a request pins and what its answer names."""

    domain: str
    version: int
    digest: str
    stack: PromptStack


@dataclass(frozen=True, eq=False)
class DomainState:
    """One line of the table.

    Args:
        served: the live stack; None when no version is live or the live one could not be loaded.
        error: code of what went wrong the last time a version should have gone live; None when all is well.
    """

    served: ServedStack | None
    error: str | None = None

    @property
    def name(self) -> str:
        """One word for people and dashboards: live, stale (an older version answers), broken or idle."""
        if self.served is not None:
            return "stale" if self.error else "live"
        return "broken" if self.error else "idle"


class LiveTable:
    """Domain to state, replaced as a whole with every change."""

    def __init__(self) -> None:
        self._entries: Mapping[str, DomainState] = MappingProxyType({})

    @property
    def entries(self) -> Mapping[str, DomainState]:
        """The table as it is at this moment; it never changes, it is replaced."""
        return self._entries

    def pin(self, domain: str) -> ServedStack:
        """The live stack of a domain, to be kept until the answer is out.

        Raises:
            DomainNotFoundError: no such domain.
            DomainNotLiveError: no version is live.
            DomainUnavailableError: the live version cannot be loaded.
        """
        state = self._entries[self.known(domain)]
        if state.served is not None:
            return state.served
        if state.error:
            raise DomainUnavailableError(f"The live version of {domain} cannot be loaded ({state.error}).")
        raise DomainNotLiveError(f"No version of {domain} is live; activate one with PUT /domains/{domain}/live.")

    def serving(self, domain: str) -> ServedStack | None:
        """The live stack of a domain, None where there is none."""
        state = self._entries.get(domain)
        return state.served if state is not None else None

    def known(self, domain: str) -> str:
        """The domain's name back.

        Raises:
            DomainNotFoundError: no such domain.
        """
        if domain not in self._entries:
            raise unknown_domain(domain)
        return domain

    def swap(self, domain: str, state: DomainState) -> None:
        """Replace one line: one assignment of a new table."""
        self._entries = MappingProxyType({**self._entries, domain: state})


def unknown_domain(domain: str) -> DomainNotFoundError:
    """The error for a domain that is not here; repeats the name only where it is one."""
    name = f" {domain}" if is_domain(domain) else ""
    return DomainNotFoundError(f"There is no domain{name} here; GET /domains lists those there are.")
