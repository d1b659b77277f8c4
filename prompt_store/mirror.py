"""A local copy of a store in a bucket.

The copy is a store's directory, so the code that reads a store reads the copy, too. `Mirror` fetches all records,
entries of the audit log and signatures; `MirrorLayout` fetches a bundle when it is read. `MirrorDisk` makes each change
in the bucket before it makes it in the copy, so a commit is one conditional `PutObject`. Only the bucket has to be
durable: files of the copy that a power failure damages are fetched again.
"""

import errno
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from prompt_store.audit import Entry
from prompt_store.digest import digest_bytes
from prompt_store.disk import Disk, read_file
from prompt_store.durable import TEMPORARY_PREFIX, to_store_error
from prompt_store.errors import PromptStoreError, StoreCorruptError, StoreUnavailableError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.layout import Layout, StoredFile, expected_type, is_record_name, record_name
from prompt_store.manifest import is_domain
from prompt_store.s3 import N_CONNECTIONS, Bucket, StoredObject, has_etag
from prompt_store.strict_json import StrictJsonError, load_object

FULL_LIST_S: Final = 60.0
"""Interval between listings of all objects. They find changes without an audit entry: their writer was killed."""
_COPIED: Final = frozenset({"FORMAT", "domains", "audit", "signatures"})
_SHARED: Final = _COPIED | {"blobs", "quarantine"}
_NO_STORE: Final = "There is no store at this address. Check it; `caspl store add` and `caspl serve` create a store."


class MirrorLayout(Layout):
    """The paths of the copy, and the objects that they are copies of."""

    def __init__(self, root: Path, bucket: Bucket) -> None:
        super().__init__(root)
        self.bucket = bucket

    def key(self, path: Path) -> str | None:
        """Return the key of a file's object; None for files that only the copy has, such as temporary ones."""
        parts = path.relative_to(self.root).parts
        if not parts or parts[0] not in _SHARED or path.name.startswith(TEMPORARY_PREFIX):
            return None
        is_shared = parts[0] == "quarantine" or expected_type(*parts) == "file"
        return "/".join(parts) if is_shared else None

    def has_copy(self, key: str) -> bool:
        """Whether an object is one of the store; a path ignores `.` and repeated slashes, but a key does not."""
        return not key.startswith("/") and self.key(self.root / key) == key

    def save(self, path: Path, data: bytes) -> None:
        """Write a file of the copy at once, replacing one that is there.

        Raises:
            StorageFullError, StoreReadOnlyError, StoreCorruptError: the copy's directory cannot be written.
        """
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.chmod(0o444)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise to_store_error(error) from error

    def fetch(self, key: str) -> str | None:
        """Copy an object, and return its entity tag; None if it does not exist.

        Raises:
            StoreUnavailableError: the bucket cannot be reached.
        """
        found = self.bucket.get(key)
        if found is None:
            return None
        self.save(self.root / key, found[0])
        return found[1]

    def fetch_blob(self, digest: str) -> None:
        """Copy a blob unless the copy has it, intact.

        Raises:
            StoreUnavailableError: the bucket cannot be reached.
        """
        path = self.blob(digest)
        if not self._is_intact(path, digest):
            self.fetch(path.relative_to(self.root).as_posix())

    def _is_intact(self, path: Path, digest: str) -> bool:
        try:
            data = read_file(path, max_bytes=MAX_BUNDLE_BYTES)
        except OSError:
            return False
        return data is not None and digest_bytes(data) == digest

    def collectable_files(self) -> Iterator[StoredFile]:
        """Yield every blob and every signature in the bucket, copied or not, with the time at which S3 stored it."""
        for one in (*self.bucket.list("blobs/"), *self.bucket.list("signatures/")):
            path = self.root / one.key
            if self.has_copy(one.key):
                yield StoredFile(f"sha256:{path.name[:64]}", path, one.size_bytes, one.modified_s)


class Mirror:
    """Follows the bucket; thread-safe, and several processes may share one copy."""

    def __init__(self, layout: MirrorLayout) -> None:
        self._layout = layout
        self._bucket = layout.bucket
        self._lock = threading.RLock()
        self._etags: dict[str, str] = {}
        self._cursor = 0
        self._listed_s = -FULL_LIST_S

    def poll(self) -> None:
        """Copy the changes, found with one request: the new entries of the audit log name the changed domains.

        Raises:
            StoreUnavailableError: the bucket cannot be reached; the next call copies the rest.
            StoreCorruptError: `not_a_store`, the store is gone.
        """
        with self._lock:
            if time.monotonic() - self._listed_s >= FULL_LIST_S:
                self.pull()
                return
            found = [
                one
                for one in self._bucket.list("audit/", after=f"audit/{record_name(self._cursor)}")
                if is_record_name(one.key.removeprefix("audit/"))
            ]
            self._copy(found)
            domains = {self._changed_domain(one.key) for one in found}
            if None in domains:
                self.pull()
                return
            for domain in sorted(filter(None, domains)):
                self.pull(f"domains/{domain}/log/")
            self._cursor = max((_number(one) for one in found), default=self._cursor)

    def pull(self, under: str = "", *, with_blobs: bool = False) -> list[str]:
        """Make the copy equal to the bucket, and return the keys that were found.

        Args:
            under: only keys that begin with this.
            with_blobs: copy all bundles, too, instead of only removing those that are gone.

        Raises:
            StoreUnavailableError: the bucket cannot be reached; the copy has a part of the changes, in their order.
            StoreCorruptError: `not_a_store`, there is none in the bucket; the copy is unchanged.
        """
        with self._lock:
            listed_s = time.monotonic()
            found = {one.key: one for one in self._bucket.list(under)}
            if not under and "FORMAT" not in found:
                raise StoreCorruptError(_NO_STORE, code="not_a_store")
            kinds = _COPIED | {"blobs"} if with_blobs else _COPIED
            self._copy([one for one in found.values() if one.key.partition("/")[0] in kinds])
            self._remove_others(under, found.keys())
            if not under:
                self._cursor = max((_number(one) for one in found.values()), default=0)
                self._listed_s = listed_s
            return list(found)

    def _copy(self, objects: list[StoredObject]) -> None:
        """Copy the objects that changed; those of one directory in their order, so that a log never has a gap."""
        folders: dict[str, list[str]] = defaultdict(list)
        for one in objects:
            if self._layout.has_copy(one.key) and not self._is_current(one, self._layout.root / one.key):
                folders[one.key.rpartition("/")[0]].append(one.key)
        if folders:
            with ThreadPoolExecutor(min(N_CONNECTIONS, len(folders))) as pool:
                list(pool.map(self._copy_all, folders.values()))

    def _copy_all(self, keys: list[str]) -> None:
        for key in sorted(keys):
            etag = self._layout.fetch(key)
            if etag is not None:
                self._etags[key] = etag

    def _is_current(self, one: StoredObject, path: Path) -> bool:
        if self._etags.get(one.key) == one.etag:
            return path.exists()
        try:
            is_current = has_etag(path.read_bytes(), one.etag)
        except OSError:
            return False
        if is_current:
            self._etags[one.key] = one.etag
        return is_current

    def _remove_others(self, under: str, keys: Collection[str]) -> None:
        """Remove files of the copy that the bucket no longer has; the last records first.

        Each is looked up again: another thread or process may have written it since the listing.
        """
        folder = self._layout.root / under.rpartition("/")[0]
        for path in sorted(folder.rglob("*"), reverse=True):
            key = self._layout.key(path)
            if key is None or key in keys or not key.startswith(under) or key.startswith("quarantine/"):
                continue
            if path.is_file() and self._bucket.head(key) is None:
                path.unlink(missing_ok=True)
                self._etags.pop(key, None)

    def _changed_domain(self, key: str) -> str | None:
        """The domain that a copied entry of the audit log names, empty for a key's; None if the entry is damaged."""
        try:
            entry = Entry.model_validate(load_object((self._layout.root / key).read_bytes()))
        except (OSError, StrictJsonError, ValidationError):
            return None
        if entry.head is None:
            return ""
        return entry.head.domain if is_domain(entry.head.domain) else None


class MirrorDisk(Disk):
    """Makes changes in the bucket first, then in the copy."""

    def __init__(self, layout: MirrorLayout) -> None:
        self._layout = layout
        self._bucket = layout.bucket
        self.removed: dict[str, Path] = {}
        """Key of each object that `unlink` removed -> temporary file with its bytes, which no other process deletes."""

    def link(self, source: Path, target: Path) -> None:
        """Create an object with the bytes of `source`; fails if it exists with others, which are copied instead.

        Raises:
            FileExistsError: it exists.
            StoreUnavailableError: it was not created; `commit_unknown` if that is not certain for a record.
        """
        key = self._layout.key(target)
        if key is None:
            super().link(source, target)
            return
        data = source.read_bytes()
        try:
            is_created = self._bucket.put_new(key, data)
        except StoreUnavailableError as error:
            if error.code == "commit_unknown" and key.partition("/")[0] not in {"domains", "audit"}:
                message = "S3 did not confirm that it stored a file; nothing was published. Retry later."
                raise StoreUnavailableError(message) from error
            raise
        if not is_created:
            self._layout.fetch(key)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with suppress(PromptStoreError):  # the change is made; the copy gets it with the next listing
            self._layout.save(target, data)

    def unlink(self, path: Path) -> None:
        """Remove an object, and keep its bytes in `removed`; remove a file that only the copy has."""
        key = self._layout.key(path)
        if key is None:
            super().unlink(path)
            return
        if not path.exists():
            self._layout.fetch(key)
        kept = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):  # neither the copy nor the bucket has it
            path.rename(kept)
            self.removed[key] = kept
        self._bucket.delete(key)

    def rename(self, source: Path, target: Path) -> None:
        """Rename an object, or all objects of a directory: copy them, then remove the old ones."""
        found = [source] if source.is_file() else sorted(source.rglob("*"))
        paths = [path for path in found if path.is_file() and not path.is_symlink()]
        for path in paths:
            new = self._layout.key(target if path == source else target / path.relative_to(source))
            if new is not None:
                self._bucket.put(new, path.read_bytes())
        for path in reversed(paths):
            old = self._layout.key(path)
            if old is not None:
                self._bucket.delete(old)
        super().rename(source, target)

    def sync_dir(self, path: Path) -> None:
        """Flush a directory of the copy, if it has it."""
        with suppress(FileNotFoundError):
            super().sync_dir(path)


def _number(one: StoredObject) -> int:
    """The number of an entry of the audit log; 0 for other objects."""
    folder, _, name = one.key.rpartition("/")
    return int(name[:10]) if folder == "audit" and is_record_name(name) else 0
