"""The stacks that answer: how a stored version becomes one, goes live, and stays at hand for a while after that.

A version goes one way: bytes → bundle → stack → table, and a content that is new to this process has to answer one row
before it goes on. Knows the bundle format and reads the store. Does not know who wants a version live, HTTP, queues or
the device: making a stack and trying it out are handed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from prompt_store.bundle import Bundle, read_bundle
from prompt_store.manifest import is_domain
from service.domains.cache import Cache
from service.domains.live_table import DomainState, LiveTable, ServedStack, unknown_domain
from service.domains.trials import Trials
from service.errors import BackboneMismatchError

if TYPE_CHECKING:
    from prompt_store.store import Store
    from prompted_clip.stack import PromptStack
    from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)


class LiveStacks:
    """The live table, and what makes stacks for it.

    Args:
        store: where versions are read.
        fingerprint: of the backbone that runs.
        load: makes a stack of a bundle.
        try_out: runs one row through a stack, raising if it cannot answer; done once per content, see `Trials`.
        prepare: does what a stack's first batches would otherwise wait for.
        went_live: told every stack that answers for its domain from now on.
        metrics: told about activations.
        max_old: versions kept loaded that are not live: replaced lately, or asked for.
        max_waiting: such versions that may wait to be loaded.

    Attributes:
        store: where versions are read.
        changes: a lock for each domain, held by whoever changes what is live there.
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
        self.changes: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._fingerprint = fingerprint
        self._load = load
        self._trials = Trials(try_out)
        self._prepare = prepare
        self._went_live = went_live
        self._metrics = metrics
        self._table = LiveTable()
        self._old: Cache[tuple[str, int], ServedStack] = Cache(max_old, max_waiting=max_waiting)

    @property
    def table(self) -> Mapping[str, DomainState]:
        """The table as it is at this moment; it never changes, it is replaced."""
        return self._table.entries

    @property
    def old(self) -> list[tuple[str, int]]:
        """Domain and version of what is loaded, or about to be, without being live."""
        return self._old.keys

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
            StackMismatchError, BackboneMismatchError, TextTooLongError: it does not fit the backbone.
            InferenceFailedError: it cannot answer.
            OverloadedError: too many others wait to be loaded, or the device has no room.
        """
        served = self.serving(domain)
        if served is not None and served.version == version:
            return served
        if not is_domain(domain):
            raise unknown_domain(domain)
        return await self._old.get((domain, version), lambda: self._read(domain, version))

    def serving(self, domain: str) -> ServedStack | None:
        """The live stack of a domain, None where there is none."""
        return self._table.serving(domain)

    def known(self, domain: str) -> str:
        """The domain's name back.

        Raises:
            DomainNotFoundError: no such domain.
        """
        return self._table.known(domain)

    async def ready(self, domain: str, version: int) -> ServedStack:
        """A version that may go live: the one that is, one that is still loaded, or else from the store.

        Raises:
            DomainNotFoundError, VersionNotFoundError: nothing there.
            StackMismatchError, BackboneMismatchError, TextTooLongError, InferenceFailedError: it cannot run here.
            OverloadedError, DeviceLostError: the device cannot try it out now.
        """
        served = self.serving(domain)
        if served is None or served.version != version:
            served = self._old.find((domain, version)) or await self._read(domain, version)
        await self.try_out(served)
        return served

    async def of_bundle(self, bundle: Bundle, version: int | None) -> PromptStack:
        """A stack of a bundle, tried out unless contents are believed at the moment.

        Raises:
            StackMismatchError, BackboneMismatchError, TextTooLongError, InferenceFailedError: it cannot run here.
            OverloadedError, DeviceLostError: the device cannot try it out now.
        """
        found = bundle.manifest.backbone.fingerprint
        if found != self._fingerprint:
            raise BackboneMismatchError(expected=self._fingerprint, found=found)
        stack = await self._load(bundle, version)
        await self._trials.hold(bundle.digest, stack)
        await self._prepare(stack)
        return stack

    async def try_out(self, served: ServedStack) -> None:
        """Try a stack out that went live without it, see `believing_after`; nothing where it has answered.

        Raises:
            Exception: it cannot answer.
        """
        await self._trials.hold(served.digest, served.stack)

    def believing_after(self, seconds: float) -> AbstractContextManager[None]:
        """Inside the block, take new contents without a trial once so many seconds are over."""
        return self._trials.for_at_most(seconds)

    def swap(self, domain: str, state: DomainState) -> None:
        """Change a domain's line of the table."""
        before = self.table.get(domain)
        self._table.swap(domain, state)
        self._metrics.domain_changed(domain, before, state)

    def go_live(self, served: ServedStack, started_s: float) -> None:
        """Let a stack answer for its domain from now on.

        Args:
            served: ready.
            started_s: when its activation began, on the monotonic clock.
        """
        replaced = self.serving(served.domain)
        self.swap(served.domain, DomainState(served))
        self._went_live(served.stack)
        self.forget({(served.domain, served.version)})
        if replaced is not None and replaced.version != served.version and self._trials.has_passed(replaced.digest):
            self._old.keep((served.domain, replaced.version), replaced)  # whoever goes back need not wait
        self._metrics.domain_activated(served.domain, "done")
        self._metrics.activation_s.observe(time.monotonic() - started_s)
        logger.info(
            "bundle.activated",
            extra={"domain": served.domain, "version": served.version, "digest": served.digest},
        )

    def forget(self, versions: set[tuple[str, int]]) -> None:
        """Let versions go that are loaded without being live."""
        self._old.forget(versions.__contains__)

    async def _read(self, domain: str, version: int) -> ServedStack:
        bundle = await asyncio.to_thread(lambda: read_bundle(self.store.read(domain, version)))
        return ServedStack(domain, version, bundle.digest, await self.of_bundle(bundle, version))
