"""Which stack answers for which domain, right now and after a change.

Knows the store and the bundle format; does not know HTTP, queues or the device: loading and warming a stack are handed
in.

A change goes one way: bytes → bundle → stack → store (durable) → table, and a content that is new to this process has
to answer one row before it goes on. Whatever fails on the way leaves the domain as it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prompt_store.bundle import Bundle, read_bundle
from prompt_store.errors import BundleInvalidError, ConflictError, PromptStoreError
from prompt_store.manifest import is_domain
from service.cache import Cache
from service.errors import (
    BackboneMismatchError,
    DeviceLostError,
    OverloadedError,
    PreconditionFailedError,
    ServiceError,
)
from service.live_table import DomainState, LiveTable, ServedStack, unknown_domain
from service.trials import Trials

if TYPE_CHECKING:
    from prompt_store.store import Added, LiveInfo, Store
    from prompted_clip.stack import PromptStack
    from service.metrics import Metrics

logger = logging.getLogger(__name__)

RETRY_FAILED_S: Final = 30.0
"""How long a domain that could not be loaded is left alone before it is tried again."""


@dataclass(frozen=True)
class Published:
    """An upload's result: what the store did, and the stack that serves now if it was activated."""

    added: Added
    served: ServedStack | None


class Domains:
    """The live table and the only way to change it.

    Args:
        store: where versions are kept.
        fingerprint: of the backbone that runs.
        load: makes a stack of a bundle.
        try_out: runs one row through a stack, raising if it cannot answer; done once per content, see `Trials`.
        prepare: does what a stack's first batches would otherwise wait for.
        went_live: told every stack that answers for its domain from now on.
        metrics: told about activations.
        max_old: versions kept loaded that are not live: replaced lately, or asked for.
        max_waiting: such versions that may wait to be loaded.
    """

    def __init__(
        self,
        store: Store,
        *,
        fingerprint: str,
        load: Callable[[Bundle, int | None], Awaitable[PromptStack]],
        try_out: Callable[[PromptStack], Awaitable[None]],
        prepare: Callable[[PromptStack], Awaitable[None]],
        went_live: Callable[[PromptStack], None] = lambda _: None,
        metrics: Metrics,
        max_old: int,
        max_waiting: int,
    ) -> None:
        self.store = store
        self._fingerprint = fingerprint
        self._load = load
        self._trials = Trials(try_out)
        self._make_ready = prepare
        self._went_live = went_live
        self._metrics = metrics
        self._table = LiveTable()
        self._old: Cache[tuple[str, int], ServedStack] = Cache(max_old, max_waiting=max_waiting)
        self._changes: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retry: dict[str, tuple[int, float]] = {}

    @property
    def table(self) -> Mapping[str, DomainState]:
        """The table as it is at this moment; it never changes, it is replaced."""
        return self._table.entries

    def pin(self, domain: str) -> ServedStack:
        """The live stack of a domain, to be kept until the answer is out.

        Raises:
            DomainNotFoundError, DomainNotLiveError, DomainUnavailableError: see `LiveTable.pin`.
        """
        return self._table.pin(domain)

    async def pin_version(self, domain: str, version: int) -> ServedStack:
        """A particular version, loaded on demand and kept for a while.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version.
            StackMismatchError, BackboneMismatchError: it does not fit the backbone.
            OverloadedError: too many others wait to be loaded.
        """
        served = self._table.serving(domain)
        if served is not None and served.version == version:
            return served
        if not is_domain(domain):
            raise unknown_domain(domain)
        return await self._old.get((domain, version), lambda: self._prepare(domain, version))

    async def publish(self, domain: str, data: bytes, *, activate: bool, actor: str) -> Published:
        """Validate a bundle whole, prove that it answers, then store it and, if asked, make it live.

        Raises:
            BundleInvalidError: it breaks a rule; nothing was stored.
            BackboneMismatchError, StackMismatchError: made for another backbone; nothing was stored.
            VersionExistsError: it is an older version already.
            StoreReadOnlyError, StorageFullError: the store cannot take it.
        """
        bundle = await asyncio.to_thread(read_bundle, data)
        if bundle.manifest.domain != domain:
            raise BundleInvalidError(
                "manifest_mismatch",
                f"The bundle was made for domain {bundle.manifest.domain}, it was sent to another one.",
                field="domain",
            )
        started_s = time.monotonic()
        stack = await self._prepare_bundle(bundle, None)
        async with self._changes[domain]:
            added = await asyncio.to_thread(self.store.add, domain, data, actor=actor)
            if domain not in self._table.entries:
                self._swap(domain, DomainState(None))
            if not activate:
                return Published(added, None)
            await asyncio.to_thread(self.store.activate, domain, added.version, actor=actor)
            served = ServedStack(domain, added.version, added.digest, stack)
            self._go_live(served, started_s)
        return Published(added, served)

    async def activate(self, domain: str, version: int, *, expected: str | None, actor: str) -> ServedStack:
        """Make a stored version live; returns once it answers.

        Args:
            domain: its name.
            version: which one.
            expected: digest that must be live right now; None does not care.
            actor: who asks, for the history.

        Raises:
            DomainNotFoundError, VersionNotFoundError: nothing there.
            PreconditionFailedError: another digest is live.
            StackMismatchError, BackboneMismatchError: it cannot run here.
        """
        started_s = time.monotonic()
        async with self._changes[self._table.known(domain)]:
            expected_live: int | None = None
            if expected is not None:
                live = await asyncio.to_thread(self.store.live, domain)
                if live is None or live.digest != expected:
                    found = live.digest if live else "nothing"
                    raise PreconditionFailedError(
                        f"If-Match names {expected}, live is {found}. Look again, then decide."
                    )
                expected_live = live.version
            served = await self._load_or_reuse(domain, version)
            try:
                await asyncio.to_thread(self.store.activate, domain, version, expected_live=expected_live, actor=actor)
            except ConflictError as error:
                if expected is None:
                    raise
                raise PreconditionFailedError("Another process changed the live version just now.") from error
            self._go_live(served, started_s)
        return served

    async def rollback(self, domain: str, *, actor: str) -> ServedStack:
        """Back to the version that was live before; returns once it answers.

        Raises:
            DomainNotFoundError: no such domain.
            ConflictError: there is nothing to go back to.
            StackMismatchError, BackboneMismatchError: that version cannot run here.
        """
        started_s = time.monotonic()
        async with self._changes[self._table.known(domain)]:
            served = await self._load_or_reuse(domain, await asyncio.to_thread(self.store.rollback_target, domain))
            info = await asyncio.to_thread(self.store.rollback, domain, actor=actor)
            if info.version != served.version:  # another process changed it in between
                served = await self._load_or_reuse(domain, info.version)
            self._go_live(served, started_s)
        return served

    async def retire(self, domain: str, version: int, *, actor: str) -> None:
        """Remove a version that is not live.

        Raises:
            DomainNotFoundError, VersionNotFoundError: nothing there.
            VersionLiveError: it is live.
        """
        async with self._changes[self._table.known(domain)]:
            await asyncio.to_thread(self.store.retire, domain, version, actor=actor)
            self._old.forget(lambda key: key == (domain, version))

    async def start(self, *, at_once: int, trials_s: float) -> None:
        """Load everything that is live, before the first request comes.

        Args:
            at_once: domains that are loaded side by side.
            trials_s: how long stacks are tried out; those that come later are believed until `try_out_the_rest`.
        """
        found = iter((await asyncio.to_thread(self._look_at_store)).items())

        async def follow_the_rest() -> None:
            for domain, live in found:
                await self._refresh(domain, live)

        with self._trials.for_at_most(trials_s):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(follow_the_rest())

    async def try_out_the_rest(self) -> None:
        """Try out what went live at start without a trial, one stack after the other, half of the time.

        One that cannot answer is taken off, and its domain says why.
        """
        for domain in self.table:
            began_s = time.monotonic()
            async with self._changes[domain]:
                await self._try_out_live(domain)
            await asyncio.sleep(time.monotonic() - began_s)  # the other half is for requests

    async def _try_out_live(self, domain: str) -> None:
        served = self._table.serving(domain)
        if served is None:
            return
        try:
            await self._trials.hold(served.digest, served.stack)
        except (DeviceLostError, OverloadedError):
            pass  # no fault of the stack's
        except Exception as error:  # noqa: BLE001  one bad artefact must not block the rest
            self._swap(domain, DomainState(None))
            self._note_failure(domain, served.version, error)

    async def refresh(self) -> None:
        """Bring the table in line with the store after changes by other processes.

        A domain that cannot be loaded keeps what it has, says why, and does not hold up the others.
        """
        for domain, live in (await asyncio.to_thread(self._look_at_store)).items():
            await self._refresh(domain, live)
        if kept := self._old.keys:
            gone = await asyncio.to_thread(lambda: {key for key in kept if self._is_retired(*key)})
            self._old.forget(gone.__contains__)

    def _is_retired(self, domain: str, version: int) -> bool:
        try:
            return all(info.version != version for info in self.store.versions(domain))
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
                async with self._changes[domain]:
                    await self._follow(domain, await asyncio.to_thread(self.store.live, domain))
        except Exception as error:  # noqa: BLE001  one bad artefact must not block the rest
            self._note_failure(domain, live.version if live else 0, error)

    def _look_at_store(self) -> dict[str, LiveInfo | Exception | None]:
        """What is live in every domain, or why that cannot be known; in one go, as this is done every second."""
        found: dict[str, LiveInfo | Exception | None] = {}
        for domain in self.store.domains():
            try:
                found[domain] = self.store.live(domain)
            except Exception as error:  # noqa: BLE001  as above
                found[domain] = error
        return found

    def _is_current(self, domain: str, live: LiveInfo | None) -> bool:
        served = self._table.serving(domain)
        if live is None or served is None:
            return domain in self._table.entries and live is None and served is None
        return served.version == live.version

    async def _follow(self, domain: str, live: LiveInfo | None) -> None:
        if live is None:
            self._swap(domain, DomainState(None))
        elif not self._is_current(domain, live):
            started_s = time.monotonic()
            self._go_live(await self._load_or_reuse(domain, live.version), started_s)

    def _failed_lately(self, domain: str, live: LiveInfo | None) -> bool:
        version, again_s = self._retry.get(domain, (0, 0.0))
        return live is not None and live.version == version and time.monotonic() < again_s

    def _note_failure(self, domain: str, version: int, error: Exception) -> None:
        self._retry[domain] = (version, time.monotonic() + RETRY_FAILED_S)
        code = str(getattr(error, "code", "internal"))
        old = self._table.entries.get(domain, DomainState(None))
        if old.error != code:
            is_expected = isinstance(error, ServiceError | PromptStoreError)
            logger.error("domain.unavailable", extra={"domain": domain, "code": code}, exc_info=not is_expected)
            self._metrics.domain_activated(domain, "failed")
        self._swap(domain, DomainState(old.served, error=code))

    def _note_recovery(self, domain: str) -> None:
        """Forget a failure that has passed: what the store says is live is what answers."""
        self._retry.pop(domain, None)
        state = self._table.entries[domain]
        if state.error:
            self._swap(domain, DomainState(state.served))
            logger.info("domain.recovered", extra={"domain": domain})

    async def _load_or_reuse(self, domain: str, version: int) -> ServedStack:
        served = self._table.serving(domain)
        if served is None or served.version != version:
            served = self._old.find((domain, version)) or await self._prepare(domain, version)
        await self._trials.hold(served.digest, served.stack)
        return served

    async def _prepare(self, domain: str, version: int) -> ServedStack:
        bundle = await asyncio.to_thread(lambda: read_bundle(self.store.read(domain, version)))
        return ServedStack(domain, version, bundle.digest, await self._prepare_bundle(bundle, version))

    async def _prepare_bundle(self, bundle: Bundle, version: int | None) -> PromptStack:
        found = bundle.manifest.backbone.fingerprint
        if found != self._fingerprint:
            raise BackboneMismatchError(expected=self._fingerprint, found=found)
        stack = await self._load(bundle, version)
        await self._trials.hold(bundle.digest, stack)
        await self._make_ready(stack)
        return stack

    def _swap(self, domain: str, state: DomainState) -> None:
        before = self._table.entries.get(domain)
        self._table.swap(domain, state)
        self._metrics.domain_changed(domain, before, state)

    def _go_live(self, served: ServedStack, started_s: float) -> None:
        replaced = self._table.serving(served.domain)
        self._swap(served.domain, DomainState(served))
        self._went_live(served.stack)
        self._old.forget(lambda key: key == (served.domain, served.version))
        if replaced is not None and replaced.version != served.version and self._trials.has_passed(replaced.digest):
            self._old.keep((served.domain, replaced.version), replaced)  # whoever goes back need not wait
        self._metrics.domain_activated(served.domain, "done")
        self._metrics.activation_s.observe(time.monotonic() - started_s)
        logger.info(
            "bundle.activated",
            extra={"domain": served.domain, "version": served.version, "digest": served.digest},
        )
