"""Changes to domains that somebody asks this process for: publish, activate, roll back, retire.

Each is durable in the store before the table shows it, and answers once it serves; whatever fails on the way leaves the
domain as it was. Knows the store and the bundle format. Does not know HTTP, queues or the device.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_store.bundle import read_bundle
from prompt_store.errors import BundleInvalidError, ConflictError
from service.domains.live_table import DomainState, ServedStack
from service.errors import PreconditionFailedError

if TYPE_CHECKING:
    from prompt_store.store import Added
    from service.domains.live_stacks import LiveStacks


@dataclass(frozen=True)
class Published:
    """An upload's result: what the store did, and the stack that serves now if it was activated."""

    added: Added
    served: ServedStack | None


class Domains:
    """Changes what answers, and the store with it.

    Args:
        live: what answers.
    """

    def __init__(self, live: LiveStacks) -> None:
        self._live = live
        self._store = live.store

    async def publish(self, domain: str, data: bytes, *, activate: bool, actor: str) -> Published:
        """Validate a bundle whole, prove that it answers, then store it and, if asked, make it live.

        Raises:
            BundleInvalidError: it breaks a rule; nothing was stored.
            BackboneMismatchError, StackMismatchError, TextTooLongError: made for another backbone; nothing was stored.
            InferenceFailedError, OverloadedError, DeviceLostError: it could not be tried out; nothing was stored.
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
        stack = await self._live.of_bundle(bundle, None)
        async with self._live.changes[domain]:
            added = await asyncio.to_thread(self._store.add, domain, data, actor=actor)
            if domain not in self._live.table:
                self._live.swap(domain, DomainState(None))
            if not activate:
                return Published(added, None)
            await asyncio.to_thread(self._store.activate, domain, added.version, actor=actor)
            served = ServedStack(domain, added.version, added.digest, stack)
            self._live.go_live(served, started_s)
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
            StackMismatchError, BackboneMismatchError, TextTooLongError, InferenceFailedError: it cannot run here.
            OverloadedError, DeviceLostError: the device cannot try it out now.
        """
        started_s = time.monotonic()
        async with self._live.changes[self._live.known(domain)]:
            expected_live: int | None = None
            if expected is not None:
                live = await asyncio.to_thread(self._store.live, domain)
                if live is None or live.digest != expected:
                    found = live.digest if live else "nothing"
                    raise PreconditionFailedError(
                        f"If-Match names {expected}, live is {found}. Look again, then decide."
                    )
                expected_live = live.version
            served = await self._live.ready(domain, version)
            try:
                await asyncio.to_thread(self._store.activate, domain, version, expected_live=expected_live, actor=actor)
            except ConflictError as error:
                if expected is None:
                    raise
                raise PreconditionFailedError("Another process changed the live version just now.") from error
            self._live.go_live(served, started_s)
        return served

    async def rollback(self, domain: str, *, actor: str) -> ServedStack:
        """Back to the version that was live before; returns once it answers.

        Raises:
            DomainNotFoundError: no such domain.
            ConflictError: there is nothing to go back to.
            StackMismatchError, BackboneMismatchError, TextTooLongError, InferenceFailedError: it cannot run here.
            OverloadedError, DeviceLostError: the device cannot try it out now.
        """
        started_s = time.monotonic()
        async with self._live.changes[self._live.known(domain)]:
            served = await self._live.ready(domain, await asyncio.to_thread(self._store.rollback_target, domain))
            info = await asyncio.to_thread(self._store.rollback, domain, actor=actor)
            if info.version != served.version:  # another process changed it in between
                served = await self._live.ready(domain, info.version)
            self._live.go_live(served, started_s)
        return served

    async def retire(self, domain: str, version: int, *, actor: str) -> None:
        """Remove a version that is not live.

        Raises:
            DomainNotFoundError, VersionNotFoundError: nothing there.
            VersionLiveError: it is live.
        """
        async with self._live.changes[self._live.known(domain)]:
            await asyncio.to_thread(self._store.retire, domain, version, actor=actor)
            self._live.forget({(domain, version)})
