"""Brings what answers in line with the store: at start, and after changes by other processes.

Knows the store's answers and the live table. A domain that cannot be loaded keeps what it has and says why, and the
others are loaded all the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from prompt_store.errors import PromptStoreError
from service.domains.live_table import DomainState
from service.errors import DeviceLostError, OverloadedError, ServiceError

if TYPE_CHECKING:
    from prompt_store.store import LiveInfo
    from service.domains.live_stacks import LiveStacks
    from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

RETRY_FAILED_S: Final = 30.0
"""How long a domain that could not be loaded, or tried out, is left alone before it is tried again."""


class StoreFollower:
    """Follows the store.

    Args:
        live: what answers.
        metrics: told about domains that fail.
    """

    def __init__(self, live: LiveStacks, metrics: Metrics) -> None:
        self._live = live
        self._metrics = metrics
        self._retry: dict[str, tuple[int, float]] = {}

    async def start(self, *, at_once: int, trials_s: float) -> None:
        """Load everything that is live, before the first request comes.

        Args:
            at_once: domains that are loaded side by side.
            trials_s: how long stacks are tried out; those that come later are believed until `try_out_the_rest`.
        """
        found = iter((await asyncio.to_thread(self._look)).items())

        async def follow_the_rest() -> None:
            for domain, live in found:
                await self._refresh(domain, live)

        with self._live.believing_after(trials_s):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(follow_the_rest())

    async def try_out_the_rest(self) -> None:
        """Try out what went live at start without a trial, one stack after the other, half of the time.

        One that cannot answer is taken off, and its domain says why. Where the device has no room, it is tried again.
        """
        waiting = list(self._live.table)
        while waiting:
            for domain in waiting.copy():
                began_s = time.monotonic()
                async with self._live.changes[domain]:
                    if await self._try_out(domain):
                        waiting.remove(domain)
                await asyncio.sleep(time.monotonic() - began_s)  # the other half is for requests
            if waiting:
                await asyncio.sleep(RETRY_FAILED_S)

    async def refresh(self) -> None:
        """Look for changes by other processes and follow them; done every second."""
        for domain, live in (await asyncio.to_thread(self._look)).items():
            await self._refresh(domain, live)
        if old := self._live.old:
            self._live.forget(await asyncio.to_thread(lambda: {one for one in old if self._is_retired(*one)}))

    async def _try_out(self, domain: str) -> bool:
        """Whether it is known now what the domain's stack can do."""
        served = self._live.serving(domain)
        if served is None:
            return True
        try:
            await self._live.try_out(served)
        except (DeviceLostError, OverloadedError):
            return False  # no fault of the stack's
        except Exception as error:  # noqa: BLE001  one bad artefact must not block the rest
            self._live.swap(domain, DomainState(None))
            self._note_failure(domain, served.version, error)
        return True

    def _look(self) -> dict[str, LiveInfo | Exception | None]:
        """What is live in every domain, or why that cannot be known; in one go, as this is done every second."""
        found: dict[str, LiveInfo | Exception | None] = {}
        for domain in self._live.store.domains():
            try:
                found[domain] = self._live.store.live(domain)
            except Exception as error:  # noqa: BLE001  as above
                found[domain] = error
        return found

    def _is_retired(self, domain: str, version: int) -> bool:
        try:
            return all(info.version != version for info in self._live.store.versions(domain))
        except PromptStoreError:
            return False  # it cannot be known now

    async def _refresh(self, domain: str, live: LiveInfo | Exception | None) -> None:
        if isinstance(live, Exception):
            self._note_failure(domain, 0, live)
            return
        try:
            if self._is_current(domain, live):
                self._note_recovery(domain)
            elif not self._failed_lately(domain, live):
                async with self._live.changes[domain]:
                    await self._follow(domain, await asyncio.to_thread(self._live.store.live, domain))
        except Exception as error:  # noqa: BLE001  as above
            self._note_failure(domain, live.version if live else 0, error)

    def _is_current(self, domain: str, live: LiveInfo | None) -> bool:
        served = self._live.serving(domain)
        if live is None or served is None:
            return domain in self._live.table and live is None and served is None
        return served.version == live.version

    async def _follow(self, domain: str, live: LiveInfo | None) -> None:
        if live is None:
            self._live.swap(domain, DomainState(None))
        elif not self._is_current(domain, live):
            started_s = time.monotonic()
            self._live.go_live(await self._live.ready(domain, live.version), started_s)

    def _failed_lately(self, domain: str, live: LiveInfo | None) -> bool:
        version, again_s = self._retry.get(domain, (0, 0.0))
        return live is not None and live.version == version and time.monotonic() < again_s

    def _note_failure(self, domain: str, version: int, error: Exception) -> None:
        self._retry[domain] = (version, time.monotonic() + RETRY_FAILED_S)
        code = str(getattr(error, "code", "internal"))
        old = self._live.table.get(domain, DomainState(None))
        if old.error != code:
            is_expected = isinstance(error, ServiceError | PromptStoreError)
            logger.error("domain.unavailable", extra={"domain": domain, "code": code}, exc_info=not is_expected)
            self._metrics.domain_activated(domain, "failed")
        self._live.swap(domain, DomainState(old.served, error=code))

    def _note_recovery(self, domain: str) -> None:
        """Forget a failure that has passed: what the store says is live is what answers."""
        self._retry.pop(domain, None)
        state = self._live.table[domain]
        if state.error:
            self._live.swap(domain, DomainState(state.served))
            logger.info("domain.recovered", extra={"domain": domain})
