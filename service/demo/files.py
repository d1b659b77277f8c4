"""The packaged demo files.

demo/bundles/*.safetensors             initial versions, one or more per domain
demo/upload/*.safetensors              a new version of one domain, to try uploads
demo/images/<domain>/<class>-<n>.jpg   sample images (or .png), to try requests
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prompt_store.bundle import read_bundle
from prompt_store.errors import BundleInvalidError, PromptStoreError, VersionExistsError
from service.errors import SettingsError

if TYPE_CHECKING:
    from prompt_store.store import Store

logger = logging.getLogger(__name__)

ASSETS: Final = Path(__file__).parent
BACKBONE: Final = "demo-student"


@dataclass(frozen=True)
class SampleBundle:
    """A packaged bundle."""

    path: Path
    domain: str
    data: bytes


def read_bundles(folder: Path) -> list[SampleBundle]:
    """Read the bundles of a folder, sorted by file name.

    Raises:
        SettingsError: there are none, or one is invalid.
    """
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        try:
            found.append(SampleBundle(path, read_bundle(data).manifest.domain, data))
        except BundleInvalidError as error:
            raise SettingsError(f"{path} is not a valid bundle: {error}", code="demo_files") from error
    if not found:
        raise SettingsError(f"No demo bundles in {folder}. Run `make demo-train` to create them.", code="demo_files")
    return found


def seed_store(store: Store, folder: Path) -> None:
    """Add the demo bundles to a store and activate the last one of each domain.

    Idempotent, also after an interruption. A domain that cannot be written is logged and left as it is.

    Raises:
        SettingsError: the bundles are missing.
    """
    for bundle in read_bundles(folder):
        try:
            added = store.add(bundle.domain, bundle.data, actor="demo")
            changes = store.history(bundle.domain)
            if not any(one.action == "activate" and one.to_version == added.version for one in changes):
                store.activate(bundle.domain, added.version, actor="demo")
        except VersionExistsError:
            continue
        except PromptStoreError as error:
            facts = {"domain": bundle.domain, "code": error.code, "detail": str(error)}
            logger.error("demo.not_seeded", extra=facts)  # noqa: TRY400  no bug: the traceback is of no use
