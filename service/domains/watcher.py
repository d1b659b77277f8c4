"""Keeps the live table in sync with the store: at startup, and after changes by other processes.

A domain whose live version cannot be loaded keeps its current version and gets an error; others are not affected.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from prompt_store.errors import PromptStoreError, StoreUnavailableError
from service.domains.live_table import DomainState
from service.errors import DeviceLostError, DeviceMemoryError, ServiceError

if TYPE_CHECKING:
    from prompt_store.versions import LiveInfo
    from service.domains.live_table import LiveTable
    from service.domains.loader import VersionLoader
    from service.domains.publisher import Publisher
    from service.domains.rollouts.lifecycle import Rollouts
    from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

RETRY_S: Final = 30.0
"""Back-off after a domain could not be loaded."""
UNAVAILABLE_RETRY_S: Final = 2.0
"""Back-off after its bundle could not be fetched from a bucket."""
CONCURRENCY: Final = 4
"""Domains loaded concurrently at startup."""


class StoreWatcher:
    """Syncs the live table with the loader's store."""

    def __init__(
        self, table: LiveTable, loader: VersionLoader, publisher: Publisher, rollouts: Rollouts, metrics: Metrics
    ) -> None:
        self._table = table
        self._loader = loader
        self._publisher = publisher
        self._rollouts = rollouts
        self._metrics = metrics
        self._skip_tests_after_s = float("inf")
        self._retry_after_s: dict[tuple[str, int], float] = {}
        self._store_error = ""
        self._unavailable = ""

    async def start(self, warmup_s: float) -> None:
        """Load every live version; after `warmup_s`, without smoke tests, which `test_in_background` runs later."""
        lives = iter((await asyncio.to_thread(self._read_store)).items())

        async def load_next() -> None:
            for domain, live in lives:
                await self._refresh(domain, live)

        self._skip_tests_after_s = time.monotonic() + warmup_s
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENCY):
                tasks.create_task(load_next())
        self._skip_tests_after_s = float("inf")

    async def test_in_background(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Run the smoke tests that `start` skipped, at half load; a version that fails is taken offline."""
        for domain in list(self._table.states):
            on_progress()
            started_s = time.monotonic()
            async with self._publisher.locks[domain]:
                live = self._table.live(domain)
                try:
                    if live is not None:
                        await self._loader.smoke_test(live.stack)
                except (DeviceLostError, DeviceMemoryError):
                    logger.warning("domain.not_tested", extra={"domain": domain}, exc_info=True)
                except Exception as error:  # noqa: BLE001  one bad bundle must not stop the others
                    self._table.swap(domain, DomainState(None))
                    self._record_failure(domain, live.version if live else 0, error)
            await asyncio.sleep(time.monotonic() - started_s)  # leave half of the time to requests

    async def refresh(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Apply changes by other processes; called every second. Reports progress at each domain."""
        await self._read_changes()
        try:
            found = await asyncio.to_thread(self._read_store)
        except PromptStoreError as error:  # all domains go on as they are
            if self._store_error != str(error):
                logger.error("store.unreadable", extra={"code": error.code, "detail": str(error)})  # noqa: TRY400
            self._store_error = str(error)
            return
        self._store_error = ""
        for domain, live in found.items():
            on_progress()
            await self._refresh(domain, live)
        for domain, state in self._table.states.items():
            if domain not in found and state.name == "broken":
                self._table.remove(domain)
        for key in self._loader.recent.keys:
            if await asyncio.to_thread(self._is_retired, *key):
                self._loader.recent.remove(key)

    async def _read_changes(self) -> None:
        """Bring the changes of other machines; while a bucket is unreachable, its copy is served."""
        code = ""
        try:
            await asyncio.to_thread(self._loader.store.refresh)
        except PromptStoreError as error:
            code = error.code
            if code != self._unavailable:
                logger.error("store.unavailable", extra={"code": code, "detail": str(error)})  # noqa: TRY400
        if self._unavailable and not code:
            logger.info("store.available")
        self._unavailable = code
        self._metrics.store_reachable.set(0 if code else 1)

    def _read_store(self) -> dict[str, LiveInfo | Exception | None]:
        """The live version of every domain, or the error of reading it."""
        found: dict[str, LiveInfo | Exception | None] = {}
        for domain in self._loader.store.domains():
            try:
                found[domain] = self._loader.store.live(domain)
            except Exception as error:  # noqa: BLE001  one unreadable domain must not hide the others
                found[domain] = error
        return found

    def _is_retired(self, domain: str, version: int) -> bool:
        try:
            return all(info.version != version for info in self._loader.store.versions(domain))
        except PromptStoreError:
            return False  # unknown for now

    async def _refresh(self, domain: str, live: LiveInfo | Exception | None) -> None:
        if isinstance(live, Exception):
            self._record_failure(domain, 0, live)
            return
        version = live.version if live else 0
        try:
            if self._is_current(domain, live):
                self._record_recovery(domain)
            elif time.monotonic() >= self._retry_after_s.get((domain, version), 0.0):
                async with self._publisher.locks[domain]:
                    await self._follow(domain, await asyncio.to_thread(self._loader.store.live, domain))
        except Exception as error:  # noqa: BLE001  one bad bundle must not stop the others
            self._record_failure(domain, version, error)

    def _is_current(self, domain: str, live: LiveInfo | None) -> bool:
        loaded = self._table.live(domain)
        if live is None or loaded is None:
            return live is None and loaded is None and domain in self._table.states
        return loaded.version == live.version and self._rollouts.is_current(domain, live)

    async def _follow(self, domain: str, live: LiveInfo | None) -> None:
        if live is None:
            self._table.swap(domain, DomainState(None))
            return
        shown = self._table.live(domain)
        if shown is None or shown.version != live.version:
            started_s = time.monotonic()
            is_trusted = started_s >= self._skip_tests_after_s
            loaded = await self._loader.load(domain, live.version, is_trusted=is_trusted)
            self._publisher.go_live(loaded, live.since, started_s)
        await self._rollouts.follow(domain, live)

    def _record_failure(self, domain: str, version: int, error: Exception) -> None:
        retry_s = UNAVAILABLE_RETRY_S if isinstance(error, StoreUnavailableError) else RETRY_S
        self._retry_after_s[domain, version] = time.monotonic() + retry_s
        code = str(getattr(error, "code", "internal"))
        state = self._table.states.get(domain, DomainState(None))
        if state.error != code:
            is_expected = isinstance(error, ServiceError | PromptStoreError)
            facts = {"domain": domain, "code": code} | ({"detail": str(error)} if is_expected else {})
            logger.error("domain.unavailable", extra=facts, exc_info=not is_expected)
            self._metrics.domain_activated(domain, "failed")
        self._table.swap(domain, replace(state, error=code))

    def _record_recovery(self, domain: str) -> None:
        state = self._table.states[domain]
        if state.error:
            self._retry_after_s = {key: after_s for key, after_s in self._retry_after_s.items() if key[0] != domain}
            self._table.swap(domain, replace(state, error=None))
            logger.info("domain.recovered", extra={"domain": domain})
