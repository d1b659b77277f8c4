"""Every importable layout by the name that `--method` takes, and what a checkpoint looks like."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from training.importing import cocoop, coop, ivlp, maple, promptkd, promptsrc
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout


@dataclass(frozen=True)
class Importer:
    """One layout.

    Attributes:
        layout: what its checkpoints look like.
        convert: from tensors and target to prompts.
    """

    layout: Layout
    convert: Callable[[CheckpointTensors, Target], Converted]


IMPORTERS: Final[dict[str, Importer]] = {
    method.LAYOUT.method: Importer(method.LAYOUT, method.convert)
    for method in (promptkd, maple, promptsrc, ivlp, cocoop, coop)
}
"""The most particular layouts first: what looks like an earlier one is not taken for a later one."""


def detect_layout(names: Iterable[str]) -> Layout | None:
    """The layout that tensors of these names look like, if any."""
    present = frozenset(names)
    return next((importer.layout for importer in IMPORTERS.values() if importer.layout.matches(present)), None)
