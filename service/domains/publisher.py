"""Changes to domains: publish, activate, roll back, retire.

Every change is durable in the store before the live table shows it, and answered once the new version serves. A change
that fails on the way leaves the live version as it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from prompt_store.bundle import read_bundle
from prompt_store.digest import digest_bytes
from prompt_store.errors import BundleInvalidError, ConflictError, VersionExistsError, VersionNotFoundError
from prompt_store.signatures import parse_signature
from service.domains.live_table import DomainState, LiveTable, LoadedVersion
from service.errors import PreconditionFailedError

if TYPE_CHECKING:
    from prompt_store.bundle import Bundle
    from prompt_store.versions import Added
    from service.domains.loader import VersionLoader
    from service.engine.engine import Engine
    from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)


class Publisher:
    """Changes the live table, and the store with it; `locks` are held by domain while its live version changes."""

    def __init__(self, table: LiveTable, loader: VersionLoader, engine: Engine, metrics: Metrics) -> None:
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._table = table
        self._loader = loader
        self._store = loader.store
        self._engine = engine
        self._metrics = metrics

    async def publish_own(
        self, domain: str, data: bytes, *, bundle: Bundle | None = None, activate: bool, actor: str, origin: str
    ) -> Added:
        """Publish a bundle that this service made, signed with its key if it has one; otherwise as `publish`."""
        signature = await asyncio.to_thread(self._loader.signing.sign, domain, data)
        try:
            return await self.publish(
                domain, data, bundle=bundle, activate=activate, actor=actor, signature=signature, origin=origin
            )
        except VersionExistsError as error:
            if signature is not None:  # the version may be from before there was a key
                await asyncio.to_thread(self._store.add_signature, domain, error.version, signature)
            raise

    async def publish(
        self,
        domain: str,
        data: bytes,
        *,
        bundle: Bundle | None = None,
        activate: bool,
        actor: str,
        signature: bytes | None = None,
        origin: str = "",
    ) -> Added:
        """Validate a bundle and its signature, run a smoke test, store both and optionally make it live.

        Args:
            domain: the domain.
            data: the bundle file.
            bundle: `read_bundle(data)`, if the caller has it already.
            activate: make it live.
            actor: key id, for the history.
            signature: the signature file, if there is one.
            origin: see `Store.add`.

        Raises:
            SignatureError: no signature although the policy requires one, or an invalid one; nothing was stored.
            BundleInvalidError: invalid bundle; nothing was stored.
            BackboneMismatchError, StackMismatchError, TextTooLongError: made for another backbone; nothing was stored.
            InferenceFailedError, DeviceMemoryError, DeviceLostError: the smoke test failed; nothing was stored.
            VersionExistsError: an older version has the same content.
            StoreReadOnlyError, StorageFullError: the store cannot be written.
        """
        await asyncio.to_thread(self._check_signature, data, signature)
        if bundle is None:
            bundle = await asyncio.to_thread(read_bundle, data)
        if bundle.manifest.domain != domain:
            message = f"The bundle is for domain {bundle.manifest.domain}, but was uploaded to another domain."
            raise BundleInvalidError("manifest_mismatch", message, field="domain")
        started_s = time.monotonic()
        with self._counting_failures(domain) if activate else nullcontext():
            stack = await self._loader.load_bundle(bundle)
            async with self.locks[domain]:
                add = partial(self._store.add, domain, data, bundle=bundle, signature=signature, origin=origin)
                added = await asyncio.to_thread(add, actor=actor)
                if domain not in self._table.states:
                    self._table.swap(domain, DomainState(None))
                loaded = LoadedVersion(domain, added.version, added.digest, stack)
                if activate:
                    info = await asyncio.to_thread(self._store.activate, domain, added.version, actor=actor)
                    self.go_live(loaded, info.since, started_s)
                else:
                    self._loader.recent.put((domain, added.version), loaded)
        return added

    def _check_signature(self, data: bytes, signature: bytes | None) -> None:
        """Check the signature of an upload before anything of it is parsed."""
        policy = self._loader.signing.policy
        if policy or signature is not None:
            digest = digest_bytes(data)
            if signature is not None:
                parse_signature(signature, digest)
            if policy:
                policy.check(digest, [] if signature is None else [signature])

    async def activate(
        self,
        domain: str,
        version: int,
        *,
        expected: str | None,
        actor: str,
        completes: tuple[int, str] | None = None,
    ) -> LoadedVersion:
        """Make a stored version live, if `expected` is None or the digest that is live now; ends a rollout.

        `completes` is as in `Store.activate`.

        Raises:
            DomainNotFoundError, VersionNotFoundError: it is not in the store.
            ConflictError: the rollout of `completes` has ended.
            PreconditionFailedError: another digest is live.
            SignatureError: the policy does not accept its signatures.
            StackMismatchError, BackboneMismatchError, TextTooLongError, InferenceFailedError: it cannot run here.
            DeviceMemoryError, DeviceLostError: the device cannot run the smoke test now.
        """
        started_s = time.monotonic()
        self._table.state(domain)
        async with self.locks[domain]:
            expected_live: int | None = None
            if expected is not None:
                live = await asyncio.to_thread(self._store.live, domain)
                if live is None or live.digest != expected:
                    found = live.digest if live else "no version"
                    raise PreconditionFailedError(
                        f"If-Match is {expected}, but {found} is live. Read the domain again."
                    )
                expected_live = live.version
            with self._counting_failures(domain):
                loaded = await self._load(domain, version)
                activate = partial(self._store.activate, domain, version, completes=completes, actor=actor)
                try:
                    info = await asyncio.to_thread(activate, expected_live=expected_live)
                except ConflictError as error:
                    if expected is None:
                        raise
                    message = "Another process changed the live version concurrently. Read the domain again."
                    raise PreconditionFailedError(message) from error
            self.go_live(loaded, info.since, started_s)
        return loaded

    async def rollback(self, domain: str, *, actor: str) -> LoadedVersion:
        """Make the previously live version live.

        Raises:
            DomainNotFoundError: no such domain.
            ConflictError: no previously live version.
            SignatureError: the policy does not accept its signatures.
            StackMismatchError, BackboneMismatchError, TextTooLongError, InferenceFailedError: it cannot run here.
            DeviceMemoryError, DeviceLostError: the device cannot run the smoke test now.
        """
        started_s = time.monotonic()
        self._table.state(domain)
        async with self.locks[domain]:
            with self._counting_failures(domain):
                loaded = await self._load(domain, await asyncio.to_thread(self._store.rollback_target, domain))
                info = await asyncio.to_thread(self._store.rollback, domain, actor=actor)
                if info.version != loaded.version:  # another process changed it in between
                    loaded = await self._load(domain, info.version)
            self.go_live(loaded, info.since, started_s)
        return loaded

    async def retire(self, domain: str, version: int, *, actor: str) -> None:
        """Remove a version that is not live.

        Raises:
            DomainNotFoundError, VersionNotFoundError: it is not in the store.
            VersionLiveError: it is live.
            ConflictError: it is the candidate of a rollout.
        """
        self._table.state(domain)
        async with self.locks[domain]:
            await asyncio.to_thread(self._store.retire, domain, version, actor=actor)
            self._loader.recent.remove((domain, version))

    def go_live(self, loaded: LoadedVersion, since: str, started_s: float) -> None:
        """Show a version that is live in the store since `since`, without a rollout.

        Its activation here began at `started_s` on the monotonic clock.
        """
        domain = loaded.domain
        replaced, running = self._table.live(domain), self._table.running(domain)
        if running is not None and not running.is_decided:
            logger.info("rollout.ended", extra={"domain": domain, "version": running.candidate.version})
        self._table.swap(domain, DomainState(loaded, since=since))
        self._engine.went_live(loaded.stack)
        self._loader.recent.remove((domain, loaded.version))
        if replaced is not None and replaced.version != loaded.version:
            self._loader.recent.put((domain, replaced.version), replaced)
        self._metrics.domain_activated(domain, "done")
        self._metrics.activation_s.observe(time.monotonic() - started_s)
        logger.info("bundle.activated", extra={"domain": domain, "version": loaded.version, "digest": loaded.digest})

    @contextmanager
    def _counting_failures(self, domain: str) -> Iterator[None]:
        """Count a failed change of a domain's live version; a conflict or a missing version is the caller's mistake."""
        try:
            yield
        except (ConflictError, PreconditionFailedError, VersionNotFoundError):
            raise
        except Exception:
            if domain in self._table.states:
                self._metrics.domain_activated(domain, "failed")
            raise

    async def _load(self, domain: str, version: int) -> LoadedVersion:
        """The live version if it has this number, else from cache or store."""
        live = self._table.live(domain)
        if live is None or live.version != version:
            return await self._loader.load(domain, version)
        await self._loader.smoke_test(live.stack)
        return live
