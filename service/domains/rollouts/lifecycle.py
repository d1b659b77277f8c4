"""Starts and ends rollouts.

They are records of the store, so that they survive restarts, and the servers of one store agree.
Each server compares and decides for itself; the first decision ends the rollout for all. Other servers follow within a
second. Counts are those of one server since its start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prompt_store.errors import ConflictError, PromptStoreError
from service.domains.live_table import RunningRollout
from service.errors import DomainUnavailableError, RolloutNotFoundError, ServiceError

if TYPE_CHECKING:
    from prompt_store.rollouts import Rollout, RolloutPlan
    from prompt_store.versions import LiveInfo
    from service.domains.live_table import LiveTable, LoadedVersion
    from service.domains.loader import VersionLoader
    from service.domains.publisher import Publisher
    from service.domains.rollouts.tally import Decision
    from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

RETRY_S: Final = 30.0
"""Back-off after a candidate could not be loaded, or the end of a rollout could not be stored."""


class NotLoaded(NamedTuple):
    """A rollout of the store whose candidate cannot run here: its `seq`, and when to try again."""

    seq: int
    code: str
    retry_after_s: float


class Rollouts:
    """The rollouts of one server."""

    def __init__(self, table: LiveTable, loader: VersionLoader, publisher: Publisher, metrics: Metrics) -> None:
        self._table = table
        self._loader = loader
        self._store = loader.store
        self._publisher = publisher
        self._metrics = metrics
        self._not_loaded: dict[str, NotLoaded] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self, domain: str, plan: RolloutPlan, *, actor: str) -> RunningRollout:
        """Load the candidate and start a rollout; returns once requests take part.

        Raises:
            DomainNotFoundError, VersionNotFoundError: no such domain or candidate.
            DomainNotLiveError, DomainUnavailableError: no version is live.
            VersionLiveError: the candidate is live.
            ConflictError: `rollout_running`, or another process changed the live version.
            Exception: errors of `VersionLoader.load` and of the store; nothing was started.
        """
        async with self._publisher.locks[domain]:
            live = self._table.pin(domain)
            candidate = live if live.version == plan.version else await self._loader.load(domain, plan.version)
            info = await asyncio.to_thread(
                self._store.start_rollout, domain, plan, expected_live=live.version, actor=actor
            )
            assert info.rollout is not None  # noqa: S101  the store's promise, for the type checker
            running = self._begin(candidate, info.rollout)
        self._metrics.rollout_counted(domain, "started")
        logger.info("rollout.started", extra=_facts(running) | {"mode": plan.mode, "percent": plan.percent})
        return running

    async def stop(self, domain: str, *, actor: str) -> None:
        """End a rollout; the live version answers all requests again.

        Raises:
            DomainNotFoundError: no such domain.
            RolloutNotFoundError: none is running.
            StoreReadOnlyError, StorageFullError, StoreCorruptError: it goes on.
        """
        self._table.state(domain)
        async with self._publisher.locks[domain]:
            is_ended = await asyncio.to_thread(self._store.end_rollout, domain, actor=actor)
            running = self._finish(domain)
        if not is_ended:
            raise _not_found(domain)
        self._metrics.rollout_counted(domain, "stopped")
        logger.info("rollout.stopped", extra=_facts(running) if running else {"domain": domain})

    def find(self, domain: str) -> RunningRollout:
        """The rollout of a domain.

        Raises:
            DomainNotFoundError: no such domain.
            RolloutNotFoundError: none is running.
            DomainUnavailableError: its candidate cannot be loaded here.
        """
        running = self._table.state(domain).running
        if running is not None:
            return running
        if domain in self._not_loaded:
            code = self._not_loaded[domain].code
            raise DomainUnavailableError(f"The candidate of the rollout cannot be loaded here ({code}). Stop it.")
        raise _not_found(domain)

    def conclude(self, domain: str, running: RunningRollout, decision: Decision) -> None:
        """End a rollout by its own plan, in the background; until the end is stored, no request takes part."""
        task = asyncio.create_task(self._conclude(domain, running, decision))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def is_current(self, domain: str, live: LiveInfo) -> bool:
        """Whether the table has the rollout of the store, or cannot have it yet."""
        seq, running = live.rollout.seq if live.rollout else None, self._table.running(domain)
        if seq is None:
            return running is None and domain not in self._not_loaded
        if running is not None:
            return seq == running.rollout.seq
        found = self._not_loaded.get(domain)
        return found is not None and found.seq == seq and time.monotonic() < found.retry_after_s

    async def follow(self, domain: str, live: LiveInfo) -> None:
        """Apply the rollout that another process started or ended, or that ran before a restart.

        The caller holds the domain's lock, and the table has the live version. A candidate that cannot be loaded leaves
        the live version alone, and is tried again later.
        """
        if self.is_current(domain, live):
            return
        if (running := self._finish(domain)) is not None:
            logger.info("rollout.ended", extra=_facts(running))
        if live.rollout is None:
            return
        try:
            candidate = await self._loader.load(domain, live.rollout.plan.version)
        except Exception as error:  # one bad bundle must not stop the others
            is_expected = isinstance(error, ServiceError | PromptStoreError)
            code = str(getattr(error, "code", "internal"))
            facts = {"domain": domain, "version": live.rollout.plan.version, "code": code}
            logger.log(logging.ERROR, "rollout.unavailable", extra=facts, exc_info=not is_expected)
            self._not_loaded[domain] = NotLoaded(live.rollout.seq, code, time.monotonic() + RETRY_S)
            return
        logger.info("rollout.followed", extra=_facts(self._begin(candidate, live.rollout)))

    def close(self) -> None:
        """Abandon ends that are not stored yet; another server or the next start decides again."""
        for task in self._ending:
            task.cancel()

    def _begin(self, candidate: LoadedVersion, rollout: Rollout) -> RunningRollout:
        running = RunningRollout(rollout, candidate)
        domain = candidate.domain
        self._not_loaded.pop(domain, None)
        self._table.swap(domain, replace(self._table.states[domain], running=running))
        return running

    def _finish(self, domain: str) -> RunningRollout | None:
        """Take a rollout out of the table; the candidate stays loaded for a while."""
        self._not_loaded.pop(domain, None)
        running = self._table.running(domain)
        if running is not None:
            self._loader.recent.put((domain, running.candidate.version), running.candidate)
            self._table.swap(domain, replace(self._table.states[domain], running=None))
        return running

    async def _conclude(self, domain: str, running: RunningRollout, decision: Decision) -> None:
        is_logged = False
        while self._table.running(domain) is running:
            try:
                if await self._end(domain, running, decision):
                    self._count_end(running, decision)
            except Exception as error:  # the candidate is not used any more, whatever the store does
                if not is_logged:
                    facts = {"domain": domain, "code": str(getattr(error, "code", "internal"))}
                    logger.exception("rollout.not_ended", extra=facts)
                is_logged = True
                await asyncio.sleep(RETRY_S)

    def _count_end(self, running: RunningRollout, decision: Decision) -> None:
        facts = _facts(running) | {"detail": decision.detail}
        if decision.event == "complete":
            logger.info("rollout.activated", extra=facts)
        else:
            logger.warning("rollout.rolled_back", extra=facts)
        result = "activated" if decision.event == "complete" else "rolled_back"
        self._metrics.rollout_counted(running.candidate.domain, result)

    async def _end(self, domain: str, running: RunningRollout, decision: Decision) -> bool:
        """Store the end; False if another server, or a change of the live version, was faster."""
        started, actor = running.rollout.seq, running.rollout.actor
        if decision.event == "complete":
            version = running.candidate.version
            self._loader.recent.put((domain, version), running.candidate)
            completes = (started, decision.detail)
            try:
                await self._publisher.activate(domain, version, expected=None, completes=completes, actor=actor)
            except ConflictError:
                async with self._publisher.locks[domain]:
                    self._finish_if(domain, running)
                return False
            return True
        async with self._publisher.locks[domain]:
            end = self._store.end_rollout
            is_ended = await asyncio.to_thread(
                end, domain, started, event="rollback", detail=decision.detail, actor=actor
            )
            self._finish_if(domain, running)
        return is_ended

    def _finish_if(self, domain: str, running: RunningRollout) -> None:
        if self._table.running(domain) is running:
            self._finish(domain)


def _facts(running: RunningRollout) -> dict[str, Any]:
    candidate, tally = running.candidate, running.tally
    return {"domain": candidate.domain, "version": candidate.version, "n_compared": tally.n_compared}


def _not_found(domain: str) -> RolloutNotFoundError:
    return RolloutNotFoundError(f"No rollout of {domain} is running. Start one with POST /domains/{domain}/rollout.")
