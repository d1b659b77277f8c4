"""Where things lie in a store, and the making of an empty one.

Knows every path of the store and builds each from checked parts only. Does not know what the files mean::

    FORMAT                              {"format":1}
    LOCK                                held shared by publishers, exclusively by the collector
    blobs/sha256/<aa>/<64 hex digits>   immutable bundles, named by their own digest
    domains/<domain>/log/0000000042.json   immutable commit records; the highest one is the state
    quarantine/                         damaged blobs, moved aside and never served
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prompt_store.digest import is_digest
from prompt_store.durable import TEMPORARY_PREFIX, Disk, create_file, ensure_dir, read_file
from prompt_store.errors import DomainNotFoundError, StoreCorruptError
from prompt_store.manifest import is_domain
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

_FORMAT: Final = {"format": 1}
_OWN_NAMES: Final = frozenset({"FORMAT", "LOCK", "blobs", "domains", "quarantine", "lost+found", ".gitignore"})


class Layout:
    """The paths of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format_file = root / "FORMAT"
        self.lock_file = root / "LOCK"
        self.blobs = root / "blobs" / "sha256"
        self.domains = root / "domains"
        self.quarantine = root / "quarantine"

    def blob(self, digest: str) -> Path:
        """Return the path of a blob.

        Raises:
            StoreCorruptError: not a digest; records are checked, so this shows damage.
        """
        if not is_digest(digest):
            raise StoreCorruptError("expected a digest of the form sha256:<64 hex digits>; restore the domain's log")
        hex_digits = digest.removeprefix("sha256:")
        return self.blobs / hex_digits[:2] / hex_digits

    def log(self, domain: str) -> Path:
        """Return the log directory of a domain.

        Raises:
            DomainNotFoundError: the text cannot name a domain.
        """
        if not is_domain(domain):
            raise DomainNotFoundError("expected a domain's name, found a text that cannot be one; list the domains")
        return self.domains / domain / "log"

    def temporary_files(self) -> Iterator[Path]:
        """Yield every temporary file that a killed writer may have left."""
        for pattern in ("", "blobs/sha256/*/", "domains/*/log/"):
            yield from self.root.glob(f"{pattern}{TEMPORARY_PREFIX}*")

    def blob_files(self) -> Iterator[tuple[str, Path]]:
        """Yield (digest, path) of every blob on disk."""
        for path in sorted(self.blobs.glob("*/*")):
            digest = f"sha256:{path.name}"
            if is_digest(digest) and path.parent.name == path.name[:2]:
                yield digest, path


def _is_store(layout: Layout) -> bool:
    try:
        data = read_file(layout.format_file, max_bytes=1024)
        if data is None:
            return False
        fields = load_object(data.rstrip(b"\n"))
    except (OSError, StrictJsonError) as error:
        raise StoreCorruptError("expected a readable FORMAT file in the store; restore it from a backup") from error
    if fields.get("format") != _FORMAT["format"]:
        raise StoreCorruptError(
            "expected store format 1, found another one; use the release that wrote this store", code="not_a_store"
        )
    return True


def open_layout(root: Path, disk: Disk, *, create: bool) -> Layout:
    """Check that a store lies at `root`, or make an empty one.

    Raises:
        StoreCorruptError: `not_a_store`, something else lies there, or nothing and `create` is False.
        StoreReadOnlyError: a new store cannot be written there.
        StorageFullError: no room for a new store.
    """
    layout = Layout(root)
    if _is_store(layout):
        return layout
    if not create:
        raise StoreCorruptError("expected a store at this path, found none; check the path", code="not_a_store")
    missing = [path for path in (root, *root.parents) if not path.exists()]
    for path in reversed(missing):
        ensure_dir(disk, path)
    # What a crash during an earlier creation may have left is fine; anybody else's files are not.
    foreign = [path for path in root.iterdir() if path.name not in _OWN_NAMES and TEMPORARY_PREFIX not in path.name]
    if foreign:
        raise StoreCorruptError(
            "expected a store or an empty directory, found other files; choose another path", code="not_a_store"
        )
    for path in (layout.blobs.parent, layout.blobs, layout.domains, layout.quarantine):
        ensure_dir(disk, path)
    create_file(disk, layout.format_file, dump_canonical(_FORMAT) + b"\n")
    return layout
