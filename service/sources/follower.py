"""Follows addresses in registries and on the Hugging Face Hub: their bundles go live here, checked as uploads are.

The live version goes on serving while a source cannot be reached, and when its bundle cannot be served.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Final, TypeVar

from prompt_store.errors import ConflictError, DomainNotFoundError, PromptStoreError, RemoteError, SignatureError
from prompt_store.manifest import is_domain
from prompt_store.records import clean_actor
from prompt_store.remotes.address import Address, parse_address, printable
from prompt_store.remotes.artifact import Artifact, check_artifact
from prompt_store.remotes.remote import Remote, open_remote
from prompted_clip.errors import PromptedClipError
from service.errors import ServiceError, SettingsError

if TYPE_CHECKING:
    from service.domains.live_table import LiveTable
    from service.domains.loader import VersionLoader
    from service.domains.publisher import Publisher
    from service.observability.metrics import Metrics
    from service.settings import Settings

logger = logging.getLogger(__name__)

JITTER: Final = 0.1
"""Share by which waits differ, so that servers that started together do not check together."""
MAX_BACKOFF_S: Final = 300.0
T = TypeVar("T")


@dataclass(frozen=True)
class SourceState:
    """The state of one followed address.

    Args:
        address: as in the settings, without the domain.
        domain: as configured, or that of the first bundle that was accepted; None before.
        digest: of the last bundle that was accepted.
        checked_at: the last successful check, ISO 8601 in UTC.
        error: code of the failure since then; None without one.
        detail: its message.
    """

    address: str
    domain: str | None = None
    digest: str | None = None
    checked_at: str | None = None
    error: str | None = None
    detail: str | None = None

    @property
    def name(self) -> str:
        """`new` (not checked yet), `ok` or `failed`."""
        if self.error:
            return "failed"
        return "ok" if self.checked_at else "new"


class SourceFollower:
    """Polls one address and makes its bundle live when that has changed.

    A version that is rolled back or replaced here stays so until the source names another bundle, also after a restart.

    Args:
        remote: the opened address.
        address: of the remote, for messages and the history.
        domain: the only one to accept; None is that of the first bundle.
        table: the versions that serve.
        publisher: makes bundles live.
        loader: of the store; its policy accepts signatures.
        metrics: counts checks.
        every_s: interval; doubled after each failure in a row, up to `MAX_BACKOFF_S`.
        owners: address by domain, shared by all followers: one domain has one source.
    """

    def __init__(
        self,
        remote: Remote,
        address: str,
        domain: str | None,
        table: LiveTable,
        publisher: Publisher,
        loader: VersionLoader,
        metrics: Metrics,
        *,
        every_s: float,
        owners: dict[str, str],
    ) -> None:
        self.state = SourceState(address, domain)
        self._remote = remote
        self._table = table
        self._publisher = publisher
        self._store = loader.store
        self._policy = loader.signing.policy
        self._metrics = metrics
        self._every_s = every_s
        self._owners = owners
        self._actor = clean_actor(f"follow:{address}")
        self._revision: str | None = None
        self._n_failures = 0
        self._lock = threading.Lock()  # for the next two
        self._n_calls, self._is_closed = 0, False
        metrics.source_changed(None, self.state.name)

    async def run(self) -> None:
        """Check at once and then at intervals, until cancelled."""
        while True:
            await self.check()
            wait_s = min(self._every_s * 2**self._n_failures, max(self._every_s, MAX_BACKOFF_S))
            await asyncio.sleep(wait_s * SystemRandom().uniform(1 - JITTER, 1 + JITTER))

    async def check(self) -> None:
        """Look once whether the source names another bundle; failures end up in `state`, the log and the metrics."""
        try:
            revision = await self._in_thread(self._remote.newest)
            is_changed = revision != self._revision
            if is_changed:
                is_changed = await self._update(revision)
                self._revision = revision
        except (PromptStoreError, PromptedClipError, ServiceError) as error:
            self._fail(error.code, str(error))
        except Exception:
            logger.exception("source.failed", extra={"source": self.state.address, "code": "internal"})
            self._fail("internal", "An unexpected error; the log has its traceback.")
        else:
            self._metrics.source_checks.labels("updated" if is_changed else "unchanged").inc()
            if self.state.error:
                logger.info("source.recovered", extra={"source": self.state.address})
            self._n_failures = 0
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._show(replace(self.state, checked_at=now, error=None, detail=None))

    def close(self) -> None:
        """Close the connections: now, or when the call that is under way ends."""
        with self._lock:
            self._is_closed = True
            is_idle = not self._n_calls
        if is_idle:
            self._remote.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run a call of the remote in a thread of its own, for which a process that stops does not wait.

        The last one to end after `close` closes the connections.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def deliver(result: Callable[[], None]) -> None:
            if not future.done():
                result()

        def run() -> None:
            try:
                result = partial(future.set_result, work())
            except Exception as error:  # noqa: BLE001  raised where the result is awaited
                result = partial(future.set_exception, error)
            with self._lock:
                self._n_calls -= 1
                is_last = self._is_closed and not self._n_calls
            if is_last:
                self._remote.close()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver, result)

        with self._lock:
            self._n_calls += 1
        threading.Thread(target=run, name="source", daemon=True).start()
        return await future

    async def _update(self, revision: str) -> bool:
        """Pull a revision and make it live; False if it, or its bundle, was live before."""
        artifact = await self._in_thread(partial(self._remote.pull, revision))
        check = partial(check_artifact, artifact, policy=self._policy, domain=self.state.domain)
        bundle = await asyncio.to_thread(check)
        domain, digest = bundle.manifest.domain, bundle.digest
        owner = self._owners.setdefault(domain, self.state.address)
        if owner != self.state.address:
            message = f"{domain} is followed from {owner} already. Follow one address per domain."
            raise ConflictError(message, code="domain_followed")
        known, was_replaced = await asyncio.to_thread(self._look_up, domain, digest)
        if known is not None:  # it may have a new signature
            await asyncio.to_thread(self._add_signatures, domain, known, artifact.signatures)
        serving = self._table.live(domain)
        is_new = not was_replaced and (serving is None or serving.digest != digest)
        if is_new:
            await self._go_live(domain, artifact, digest, known)
            facts = {"source": self.state.address, "domain": domain, "digest": digest, "revision": revision}
            logger.info("source.updated", extra=facts)
        self._show(replace(self.state, domain=domain, digest=digest))
        return is_new

    def _look_up(self, domain: str, digest: str) -> tuple[int | None, bool]:
        """The version with this bundle, if any; and whether it is the last one from this source and was replaced."""
        try:
            by_version = {info.version: info.digest for info in self._store.versions(domain)}
            live, followed = self._store.live(domain), self._last_followed(domain)
        except DomainNotFoundError:
            return None, False
        is_last = followed is not None and by_version.get(followed) == digest
        known = next((number for number, found in by_version.items() if found == digest), None)
        return known, is_last and (live is None or live.digest != digest)

    def _last_followed(self, domain: str) -> int | None:
        """The version that this source made live last, anywhere in the history; None if it made none live."""
        before = None
        while entries := self._store.history(domain, before=before):
            for entry in reversed(entries):
                if entry.actor == self._actor and entry.action == "activate":
                    return entry.to_version
            before = entries[0].seq
        return None

    async def _go_live(self, domain: str, artifact: Artifact, digest: str, known: int | None) -> None:
        """Publish a bundle, or activate the version that has its content."""
        publisher, data = self._publisher, artifact.bundle
        if known is not None:
            await publisher.activate(domain, known, expected=None, actor=self._actor)
            return
        signature = self._accepted(artifact, digest)
        added = await publisher.publish(domain, data, activate=True, actor=self._actor, signature=signature)
        await asyncio.to_thread(self._add_signatures, domain, added.version, artifact.signatures)

    def _accepted(self, artifact: Artifact, digest: str) -> bytes | None:
        """The first signature that the policy accepts: it is stored with the version, the others after it."""
        for signature in artifact.signatures:
            with suppress(SignatureError):
                if self._policy is not None:
                    self._policy.check(digest, [signature])
                return signature
        return None

    def _add_signatures(self, domain: str, version: int, signatures: Sequence[bytes]) -> None:
        for signature in signatures:
            self._store.add_signature(domain, version, signature)

    def _fail(self, code: str, detail: str) -> None:
        self._metrics.source_checks.labels("failed").inc()
        self._n_failures += 1
        if (self.state.error, self.state.detail) != (code, detail):
            logger.warning("source.failed", extra={"source": self.state.address, "code": code, "detail": detail})
        self._show(replace(self.state, error=code, detail=detail))

    def _show(self, state: SourceState) -> None:
        before, self.state = self.state, state
        self._metrics.source_changed(before.name, state.name)


def followed_addresses(settings: Settings) -> list[tuple[Address, str | None]]:
    """The addresses of `settings.follow`, each with its domain or None.

    Raises:
        SettingsError: an invalid address or domain.
    """
    found: list[tuple[Address, str | None]] = []
    for text in settings.follow:
        name, has_domain, rest = text.partition("=")
        if has_domain and not is_domain(name):
            raise SettingsError(f"follow: {printable(name)} is not a domain. Write ADDRESS or DOMAIN=ADDRESS.")
        try:
            found.append((parse_address(rest), name) if has_domain else (parse_address(text), None))
        except RemoteError as error:
            raise SettingsError(f"follow: {error}", code=error.code) from error
    return found


def open_sources(
    settings: Settings, table: LiveTable, publisher: Publisher, loader: VersionLoader, metrics: Metrics
) -> tuple[SourceFollower, ...]:
    """The followers of `settings.follow`; connects to nothing yet.

    Raises:
        SettingsError: an invalid address, or one that needs an extra.
    """
    owners: dict[str, str] = {}
    followers = []
    for address, domain in followed_addresses(settings):
        try:
            remote = open_remote(address, plain_http=settings.follow_plain_http)
        except RemoteError as error:
            raise SettingsError(f"follow: {error}", code=error.code) from error
        every_s = settings.follow_every_s
        followers.append(
            SourceFollower(
                remote, str(address), domain, table, publisher, loader, metrics, every_s=every_s, owners=owners
            )
        )
    return tuple(followers)
