"""The packaged demo files.

demo/bundles/*.safetensors             initial versions, one or more per domain
demo/upload/*.safetensors              a new version of one domain, uploaded by the demo
demo/images/<domain>/<class>-<n>.jpg   sample images (or .png, .webp); the file name contains the true class
"""

from __future__ import annotations

import logging
import re
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
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
COUNTER: Final = re.compile(r"[-_ ]*\d+$")
SEPARATORS: Final = re.compile(r"[-_ ]+")


@dataclass(frozen=True)
class SampleBundle:
    """A packaged bundle."""

    path: Path
    domain: str
    data: bytes


@dataclass(frozen=True)
class SampleImage:
    """A packaged image of one domain with its true class."""

    path: Path
    domain: str
    true_class: str

    def is_of(self, label: str) -> bool:
        """Whether the label is the image's true class."""
        return _plain(label) == self.true_class


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


def read_images(folder: Path) -> list[SampleImage]:
    """List the sample images of a folder with one subfolder per domain, sorted by name.

    Raises:
        SettingsError: there are none.
    """
    found = [
        SampleImage(path, path.parent.name, _plain(COUNTER.sub("", path.stem)))
        for path in sorted(folder.glob("*/*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise SettingsError(f"No demo images in {folder}/<domain>/.", code="demo_files")
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


def _plain(text: str) -> str:
    return SEPARATORS.sub(" ", text).strip().lower()
