"""A store in an S3 bucket, shared by many servers: a `Store` on a local copy of the bucket."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final

from prompt_store.audit_check import AuditReport
from prompt_store.bundle import Bundle
from prompt_store.check import Finding, StoreCheck
from prompt_store.collect import GRACE_S, KEEP_VERSIONS, TEMPORARY_GRACE_S, GcReport
from prompt_store.digest import digest_bytes
from prompt_store.errors import (
    StoreCorruptError,
    StoreReadOnlyError,
    StoreUnavailableError,
    VersionExistsError,
)
from prompt_store.layout import is_store, open_layout
from prompt_store.mirror import Mirror, MirrorDisk, MirrorLayout
from prompt_store.repair import Repair, check_and_repair
from prompt_store.s3 import Bucket, has_etag
from prompt_store.store import Store
from prompt_store.versions import Added

CACHE_VARIABLE: Final = "CASPL_STORE_CACHE"


def copy_folder(bucket: Bucket, cache: Path | None) -> Path:
    """Create and return the directory of a bucket's copy: one for each server, bucket and prefix.

    Args:
        bucket: the bucket.
        cache: directory of all copies; None for that of `CASPL_STORE_CACHE`, or `caspl/stores` in the user's cache.

    Raises:
        StoreReadOnlyError: it cannot be created.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if cache is None and named:
        cache = Path(named)
    name = hashlib.sha256(f"{bucket.endpoint} {bucket.address}".encode()).hexdigest()[:16]
    try:
        if cache is None:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caspl" / "stores"
        folder = cache.resolve() / f"{bucket.name}-{name}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise StoreReadOnlyError(
            f"The directory for local copies of buckets cannot be created ({type(error).__name__}). Set "
            f"{CACHE_VARIABLE} to a directory that is writable."
        ) from error
    return folder


class S3Store(Store):
    """A store in a bucket. Open it with `S3Store.connect`.

    Reads use the copy; a bundle is fetched when it is first read. `refresh` fetches the changes of other machines. A
    change first fetches its domain's log, so it fails while the bucket cannot be reached.
    """

    def __init__(self, layout: MirrorLayout) -> None:
        self._copy = layout
        self._mirror = Mirror(layout)
        self._mirror_disk = MirrorDisk(layout)
        self._is_reachable = True
        self._has_conditional_writes = False
        super().__init__(layout, self._mirror_disk)

    @classmethod
    def connect(
        cls, address: str, *, create: bool = True, cache: Path | None = None, allow_stale: bool = False
    ) -> "S3Store":
        """Open the store at `s3://BUCKET/PREFIX`, or create it if `create` is True; the bucket exists.

        Args:
            address: the bucket and the prefix of all keys.
            create: whether to create a store, if there are no objects at the address.
            cache: see `copy_folder`.
            allow_stale: open the last copy if the bucket cannot be reached.

        Raises:
            StoreCorruptError: `not_a_store`, no such bucket, other objects, or no store exists and `create` is False;
                `store_corrupt`, FORMAT is unreadable.
            StoreUnavailableError: the bucket cannot be reached, and there is no copy or it is not allowed.
            StoreReadOnlyError, StorageFullError: the directory of the copy is not writable.
        """
        bucket = Bucket(address)
        layout = MirrorLayout(copy_folder(bucket, cache), bucket)
        store = cls(layout)
        try:
            if create and bucket.get("FORMAT") is None:
                store._create()
            store._mirror.pull()
        except StoreUnavailableError:
            if not (allow_stale and layout.format_file.exists()):
                raise
            store._is_reachable = False
        if not is_store(layout):
            raise StoreCorruptError("The copy of the store has no FORMAT file. Remove the copy.", code="not_a_store")
        return store

    def _create(self) -> None:
        first = next(self._copy.bucket.list(), None)
        if first is not None and first.key != "FORMAT":  # another machine may have created the store just now
            raise StoreCorruptError(
                "There are objects at this address, but no store. Choose another prefix.", code="not_a_store"
            )
        if self._copy.format_file.exists():
            raise StoreCorruptError(
                f"The bucket has no store any more, but {self.root} is a copy of one. Restore the bucket, or remove "
                "the copy to begin with an empty store.",
                code="not_a_store",
            )
        open_layout(self.root, self._mirror_disk, create=True)

    @property
    def address(self) -> str:
        """The bucket and the prefix."""
        return self._copy.bucket.address

    @property
    def is_writable(self) -> bool:
        """Whether the store accepted the last request, and the copy is writable."""
        return self._is_reachable and super().is_writable

    def refresh(self) -> None:
        """See `Store.refresh`."""
        try:
            self._mirror.poll()
        except StoreUnavailableError:
            self._is_reachable = False
            raise
        self._is_reachable = True

    def _read_changes(self, domain: str) -> None:
        if not self._has_conditional_writes:
            self._copy.bucket.require_conditional_writes("FORMAT", self._copy.format_file.read_bytes())
            self._has_conditional_writes = True
        self._mirror.pull(f"domains/{domain}/log/" if domain else "")

    def signatures(self, digest: str) -> list[bytes]:
        """See `Store.signatures`; without the bucket those that were copied."""
        name = digest.removeprefix("sha256:")
        try:
            self._mirror.pull(f"signatures/{name[:2]}/{name}-")
        except StoreUnavailableError:
            self._is_reachable = False
        return super().signatures(digest)

    def audit(self) -> AuditReport:
        """See `Store.audit`.

        Raises:
            StoreUnavailableError: the bucket cannot be reached.
        """
        self._mirror.pull()
        return super().audit()

    def add(
        self,
        domain: str,
        data: bytes,
        *,
        bundle: Bundle | None = None,
        signature: bytes | None = None,
        origin: str = "",
        actor: str = "",
    ) -> Added:
        """See `Store.add`; raises StoreUnavailableError, too."""
        try:
            added = super().add(domain, data, bundle=bundle, signature=signature, origin=origin, actor=actor)
        except VersionExistsError:
            self._require_blob(data)
            raise
        self._require_blob(data)
        return added

    def _require_blob(self, data: bytes) -> None:
        """Store a bundle again if it is damaged or gone: a collection on another machine may have removed it.

        The check follows the publication, and `gc` reads the logs again after its deletions, so one of the two always
        restores a bundle that was published and deleted at once.
        """
        digest = digest_bytes(data)
        key = self._copy.blob(digest).relative_to(self.root).as_posix()
        try:
            found = self._copy.bucket.head(key)
            if found is None or not has_etag(data, found.etag):
                stored = self._copy.bucket.get(key)
                if stored is None or stored[0] != data:
                    self._copy.bucket.put(key, data)
        except StoreUnavailableError as error:
            raise StoreUnavailableError(
                "The version was published, but S3 did not confirm its bundle. Send it again.", code="commit_unknown"
            ) from error

    def gc(
        self,
        *,
        keep_versions: int = KEEP_VERSIONS,
        grace_s: float = GRACE_S,
        temporary_grace_s: float = TEMPORARY_GRACE_S,
        dry_run: bool = False,
        actor: str = "",
    ) -> GcReport:
        """See `Store.gc`; other machines may publish meanwhile. Raises StoreUnavailableError, too."""
        self._restore_referenced()  # removed by an earlier call that then failed to reach the bucket
        try:
            return super().gc(
                keep_versions=keep_versions,
                grace_s=grace_s,
                temporary_grace_s=temporary_grace_s,
                dry_run=dry_run,
                actor=actor,
            )
        finally:
            self._restore_referenced()

    def _restore_referenced(self) -> None:
        """Restore the removed files that a version published meanwhile refers to, and delete the others."""
        removed = self._mirror_disk.removed
        if not removed:
            return
        self._mirror.pull("domains/")
        referenced = {entry.digest for domain in self.domains() for entry in self._logs.state(domain).available()}
        while removed:
            key, kept = next(iter(removed.items()))
            if f"sha256:{PurePosixPath(key).name[:64]}" in referenced:
                self._copy.bucket.put(key, kept.read_bytes())
                kept.replace(self.root / key)
            else:
                kept.unlink(missing_ok=True)
            del removed[key]


def check_bucket(address: str, *, repair: bool = False, cache: Path | None = None) -> tuple[StoreCheck, list[Repair]]:
    """Copy a whole store and check the copy, see `repair.check_store`; a repair changes the bucket.

    Raises:
        StoreCorruptError: `not_a_store`.
        StoreUnavailableError: the bucket cannot be reached.
        ConflictError: `store_busy`, another process on this machine is writing; only with `repair`.
        StoreReadOnlyError, StorageFullError: the store cannot be repaired, or the copy not written.
    """
    bucket = Bucket(address)
    layout = MirrorLayout(copy_folder(bucket, cache), bucket)
    keys = Mirror(layout).pull(with_blobs=True)
    found, repairs = check_and_repair(layout, MirrorDisk(layout), repair=repair)
    foreign = [key for key in keys if not layout.has_copy(key)]
    findings = [Finding(key, "Not an object of the store.", is_damage=False) for key in foreign]
    return replace(found, findings=(*found.findings, *findings)), repairs
