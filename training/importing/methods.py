"""The importers by `--method` name, and layout detection."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from training.importing import cocoop, coop, ivlp, maple, promptkd, promptsrc
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout


@dataclass(frozen=True)
class Importer:
    """One importable method.

    Attributes:
        layout: layout of its checkpoints.
        convert: converts tensors to prompts.
    """

    layout: Layout
    convert: Callable[[CheckpointTensors, Target], Converted]


IMPORTERS: Final[dict[str, Importer]] = {
    method.LAYOUT.method: Importer(method.LAYOUT, method.convert)
    for method in (promptkd, maple, promptsrc, ivlp, cocoop, coop)
}
"""Most specific layouts first: `detect_layout` returns the first match."""


def detect_layout(names: Iterable[str]) -> Layout | None:
    """The first layout that matches these tensor names, or None."""
    found = frozenset(names)
    return next((importer.layout for importer in IMPORTERS.values() if importer.layout.matches(found)), None)
