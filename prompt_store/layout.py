"""The directory layout of a store, and creating an empty one.

Paths are built from validated parts only::

    FORMAT                              {"format":1,"minor":1}
    LOCK                                locked shared to publish, exclusively to collect garbage
    blobs/sha256/<aa>/<64 hex digits>   immutable bundles, named by their digest
    signatures/<aa>/<64 hex digits>-<64 hex digits>.json   immutable signatures: digest of the bundle, own digest
    domains/<domain>/log/0000000042.json   immutable commit records, numbered from 1
    audit/0000000042.json               immutable entries of the audit log, numbered from 1
    quarantine/                         damaged files, never served
    examples.sqlite3                    the service's examples; SQLite keeps -wal and -shm beside it while it is open
"""

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from prompt_store.digest import is_digest
from prompt_store.disk import Disk, EntryType, list_directory, read_file
from prompt_store.durable import (
    TEMPORARY_PREFIX,
    create_directory,
    create_file,
    error_name,
    is_device_failure,
    to_store_error,
)
from prompt_store.errors import DomainNotFoundError, StoreCorruptError
from prompt_store.manifest import is_domain
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

FORMAT: Final = 1
FORMAT_BYTES: Final = dump_canonical({"format": FORMAT, "minor": 1}) + b"\n"
"""Minor version 1: records carry a checksum. Every minor version can be read, and nothing is rewritten."""
NO_STORE: Final = "No store at this path. Check the path; `caspl store add` creates a store."
EXAMPLES: Final = "examples.sqlite3"
_FAN_OUT: Final = re.compile(r"[0-9a-f]{2}")
_RECORD: Final = re.compile(r"[0-9]{10}\.json")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}-[0-9a-f]{64}\.json")


class StoredFile(NamedTuple):
    """A bundle or a signature: the digest of the bundle, its path, and when it was written, in seconds since 1970."""

    digest: str
    path: Path
    size_bytes: int
    modified_s: float


class Layout:
    """The paths in one store; `root` is absolute and resolved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format_file = root / "FORMAT"
        self.lock_file = root / "LOCK"
        self.blobs = root / "blobs" / "sha256"
        self.signatures = root / "signatures"
        self.domains = root / "domains"
        self.audit = root / "audit"
        self.quarantine = root / "quarantine"
        self.examples = root / EXAMPLES

    def blob(self, digest: str) -> Path:
        """Return the path of a blob.

        Raises:
            StoreCorruptError: not a digest.
        """
        if not is_digest(digest):
            raise StoreCorruptError("The log contains an invalid digest. Restore the domain's log from a backup.")
        hex_digits = digest.removeprefix("sha256:")
        return self.blobs / hex_digits[:2] / hex_digits

    def fetch_blob(self, digest: str) -> None:
        """Called before a blob is read; the copy of a bucket fetches the blob here."""

    def signature(self, bundle_digest: str, digest: str) -> Path:
        """Return the path of a signature, by the digest of the bundle and its own."""
        hex_digits = self.blob(bundle_digest).name
        return self.signatures / hex_digits[:2] / f"{hex_digits}-{digest.removeprefix('sha256:')}.json"

    def log(self, domain: str) -> Path:
        """Return the log directory of a domain.

        Raises:
            DomainNotFoundError: not a valid domain name.
        """
        if not is_domain(domain):
            raise DomainNotFoundError("Not a valid domain name. Use `caspl store ls` to list domains.")
        return self.domains / domain / "log"

    def temporary_files(self) -> Iterator[Path]:
        """Yield all temporary files, including those left by killed writers."""
        logs = (path / "log" for path in _paths(self.domains, "directory"))
        folders = (*_paths(self.blobs, "directory"), *_paths(self.signatures, "directory"))
        for directory in (self.root, self.audit, *folders, *logs):
            yield from (path for path in _paths(directory, "file") if path.name.startswith(TEMPORARY_PREFIX))

    def blob_files(self) -> Iterator[tuple[str, Path]]:
        """Yield (digest, path) of every blob on disk."""
        for directory in _paths(self.blobs, "directory"):
            for path in _paths(directory, "file"):
                if expected_type("blobs", "sha256", directory.name, path.name):
                    yield f"sha256:{path.name}", path

    def signature_files(self) -> Iterator[tuple[str, Path]]:
        """Yield (digest of the bundle, path) of every signature on disk."""
        for directory in _paths(self.signatures, "directory"):
            for path in _paths(directory, "file"):
                if expected_type("signatures", directory.name, path.name):
                    yield f"sha256:{path.name[:64]}", path

    def collectable_files(self) -> Iterator[StoredFile]:
        """Yield every blob and every signature."""
        for digest, path in (*self.blob_files(), *self.signature_files()):
            with suppress(FileNotFoundError):
                stat = path.lstat()
                yield StoredFile(digest, path, stat.st_size, stat.st_mtime)


def record_name(seq: int) -> str:
    """Return the file name of a record."""
    return f"{seq:010d}.json"


def is_record_name(name: str) -> bool:
    """Whether a file name is that of a record."""
    return _RECORD.fullmatch(name) is not None


def expected_type(*parts: str) -> EntryType | None:
    """Return the type of an entry by the components of its path in a store; None if a store has no such entry."""
    match parts:
        case ("FORMAT" | "LOCK" | ".gitignore" | "examples.sqlite3" | "examples.sqlite3-wal" | "examples.sqlite3-shm",):
            return "file"
        case ("blobs" | "signatures" | "domains" | "audit" | "quarantine" | "lost+found",) | ("blobs", "sha256"):
            return "directory"
        case ("blobs", "sha256", folder):
            return "directory" if _FAN_OUT.fullmatch(folder) else None
        case ("blobs", "sha256", folder, name):
            return "file" if is_digest(f"sha256:{name}") and name[:2] == folder else None
        case ("signatures", folder):
            return "directory" if _FAN_OUT.fullmatch(folder) else None
        case ("signatures", folder, name):
            return "file" if _SIGNATURE.fullmatch(name) and name[:2] == folder else None
        case ("audit", name):
            return "file" if is_record_name(name) else None
        case ("domains", domain) | ("domains", domain, "log"):
            return "directory" if is_domain(domain) else None
        case ("domains", _, "log", name):
            return "file" if is_record_name(name) else None
        case _:
            return None


def _paths(directory: Path, entry_type: EntryType) -> list[Path]:
    """Return the entries of this type, sorted; none if the directory is missing, unreadable or a link."""
    try:
        return [directory / name for name, found in list_directory(directory).items() if found == entry_type]
    except OSError:
        return []


def is_store(layout: Layout) -> bool:
    """Whether the directory has a FORMAT file of a supported format.

    Raises:
        StoreCorruptError: `not_a_store`, another format; `store_corrupt`, the file is unreadable.
    """
    try:
        data = read_file(layout.format_file, max_bytes=1024)
        if data is None:
            return False
        fields = load_object(data.rstrip(b"\n"))
    except OSError as error:
        raise StoreCorruptError(
            f"The store's FORMAT file is unreadable ({error_name(error)}). Check its permissions and the disk."
        ) from error
    except StrictJsonError as error:
        raise StoreCorruptError("The store's FORMAT file is damaged. Run `caspl store check --repair`.") from error
    if fields.get("format") != FORMAT:
        raise StoreCorruptError(
            "Unsupported store format. Use the release that created this store.", code="not_a_store"
        )
    return True


def open_layout(root: Path, disk: Disk, *, create: bool) -> Layout:
    """Open the store at `root`, or create an empty one.

    Raises:
        StoreCorruptError: `not_a_store`, the directory holds other files, or no store exists and `create` is False.
        StoreReadOnlyError: the directory is not writable.
        StorageFullError: not enough free space.
    """
    layout = Layout(root)
    if is_store(layout):
        return layout
    if not create:
        raise StoreCorruptError(NO_STORE, code="not_a_store")
    missing = [path for path in (root, *root.parents) if not path.exists()]
    try:
        # A killed process may have created the last one that exists, without syncing it.
        disk.sync_dir((missing[-1] if missing else root).parent)
    except OSError as error:
        # Otherwise it is another user's directory or another file system, which existed before.
        if is_device_failure(error) and error.errno != errno.EROFS:
            raise to_store_error(error) from error
    for path in reversed(missing):
        create_directory(disk, path)
    # Leftovers of an interrupted creation are fine; other files are not.
    foreign = [path for path in root.iterdir() if not expected_type(path.name) and TEMPORARY_PREFIX not in path.name]
    if foreign:
        raise StoreCorruptError("The directory is neither a store nor empty. Choose another path.", code="not_a_store")
    for path in (layout.blobs.parent, layout.blobs, layout.domains, layout.quarantine):
        create_directory(disk, path)
    create_file(disk, layout.format_file, FORMAT_BYTES)
    return layout
