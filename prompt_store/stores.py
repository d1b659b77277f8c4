"""Opens and checks a store by its address: a directory, or `s3://BUCKET/PREFIX`."""

from pathlib import Path

from prompt_store.check import StoreCheck
from prompt_store.repair import Repair
from prompt_store.repair import check_store as check_directory
from prompt_store.s3 import is_s3
from prompt_store.s3_store import S3Store, check_bucket
from prompt_store.store import Store


def open_store(
    address: str | Path, *, create: bool = False, cache: Path | None = None, allow_stale: bool = False
) -> Store:
    """Open a store, or create an empty one if `create` is True.

    Args:
        address: a directory, or a bucket and a prefix.
        create: whether to create a store.
        cache: directory for local copies of buckets, see `s3_store.copy_folder`.
        allow_stale: open the last copy of a bucket that cannot be reached.

    Raises: as `Store.open` and `S3Store.connect`.
    """
    if is_s3(address):
        return S3Store.connect(str(address), create=create, cache=cache, allow_stale=allow_stale)
    return Store.open(Path(address), create=create)


def check_store(address: str | Path, *, repair: bool = False) -> tuple[StoreCheck, list[Repair]]:
    """Check a store, and repair it if `repair` is True.

    Raises: as `repair.check_store` and `s3_store.check_bucket`.
    """
    if is_s3(address):
        return check_bucket(str(address), repair=repair)
    return check_directory(Path(address), repair=repair)
