"""Where the packaged demo lies, and what it consists of.

demo/bundles/*.safetensors             first versions, one or more per domain; seed the demo's store
demo/upload/*.safetensors              one further version for one of the domains; swapped in by the demo run
demo/images/<domain>/<class>-<n>.jpg   samples (or .png, .webp); the file name holds the true class
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prompt_store.bundle import read_bundle
from prompt_store.errors import BundleInvalidError, VersionExistsError
from service.errors import SettingsError

if TYPE_CHECKING:
    from prompt_store.store import Store

ASSETS: Final = Path(__file__).parent
BACKBONE: Final = "demo-student"
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
COUNTER: Final = re.compile(r"[-_ ]*\d+$")
SEPARATORS: Final = re.compile(r"[-_ ]+")


@dataclass(frozen=True)
class SampleBundle:
    """A packaged bundle: the domain it is for and its bytes."""

    path: Path
    domain: str
    data: bytes


@dataclass(frozen=True)
class SampleImage:
    """A packaged image of one domain, with the class it shows."""

    path: Path
    domain: str
    true_class: str

    def is_of(self, label: str) -> bool:
        """Whether a label names the class this image shows."""
        return _plain(label) == self.true_class


def read_bundles(folder: Path) -> list[SampleBundle]:
    """The bundles of a folder, by file name.

    Raises:
        SettingsError: there are none, or one is not a bundle.
    """
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        try:
            found.append(SampleBundle(path, read_bundle(data).manifest.domain, data))
        except BundleInvalidError as error:
            raise SettingsError(f"{path} is not a bundle: {error}", code="demo_files") from error
    if not found:
        raise SettingsError(
            f"The demo needs bundles in {folder}, there are none. Run `make demo-train` to make them again.",
            code="demo_files",
        )
    return found


def read_images(folder: Path) -> list[SampleImage]:
    """The sample images below a folder with one directory per domain, by name.

    Raises:
        SettingsError: there are none.
    """
    found = [
        SampleImage(path, path.parent.name, _plain(COUNTER.sub("", path.stem)))
        for path in sorted(folder.glob("*/*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise SettingsError(f"The demo needs images in {folder}/<domain>/, there are none.", code="demo_files")
    return found


def seed_store(store: Store, folder: Path) -> None:
    """Add the demo's bundles to a store and make the last one of each domain live; harmless when done before.

    Raises:
        SettingsError: the bundles are missing.
    """
    for bundle in read_bundles(folder):
        try:
            added = store.add(bundle.domain, bundle.data, actor="demo")
        except VersionExistsError:
            continue
        if added.created:
            store.activate(bundle.domain, added.version, actor="demo")


def _plain(text: str) -> str:
    return SEPARATORS.sub(" ", text).strip().lower()
