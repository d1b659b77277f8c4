"""The tables of the CasPL paper (arXiv 2409.17805) as data sets, methods and shots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from training.evaluation.caspl_tables import METHODS, SHOTS
from training.evaluation.published import PAPER_DATASETS
from training.evaluation.rows import Protocol

VARIANTS: Final = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        protocol: evaluation protocol, also the table's name.
        datasets: catalog names; for domain generalisation the first is trained on and all are tested.
        methods: adapting methods, each with and without boosting prompts.
        shots: training images per class.
        where: place in the paper.
    """

    protocol: Protocol
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    shots: tuple[int, ...]
    where: str

    @property
    def is_transfer(self) -> bool:
        """Trained on the first data set, tested on all."""
        return self.protocol == "domain-generalisation"

    def without(self, missing: Iterable[str]) -> "PaperTable | None":
        """The table without some data sets; None if nothing is left to train on, or to transfer to."""
        absent = set(missing)
        kept = tuple(name for name in self.datasets if name not in absent)
        if self.is_transfer and (self.datasets[0] in absent or len(kept) < 2):
            return None
        return PaperTable(self.protocol, kept, self.methods, self.shots, self.where) if kept else None


TABLES: Final[Mapping[str, PaperTable]] = MappingProxyType(
    {
        table.protocol: table
        for table in (
            PaperTable("base-to-new", PAPER_DATASETS, METHODS, (16,), "table 1"),
            PaperTable("domain-generalisation", ("imagenet", *VARIANTS), METHODS, (16,), "table 2"),
            PaperTable("few-shot", PAPER_DATASETS, ("promptsrc",), SHOTS, "figure 3 and supplementary material"),
        )
    }
)

IMAGE_COUNTS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "imagenet": (1_281_167, 50_000),
        "caltech101": (4_128, 2_465),
        "oxford_pets": (2_944, 3_669),
        "stanford_cars": (6_509, 8_041),
        "oxford_flowers": (4_093, 2_463),
        "food101": (50_500, 30_300),
        "fgvc_aircraft": (3_334, 3_333),
        "sun397": (15_880, 19_850),
        "dtd": (2_820, 1_692),
        "eurosat": (13_500, 8_100),
        "ucf101": (7_639, 3_783),
        "imagenetv2": (0, 10_000),
        "imagenet_sketch": (0, 50_889),
        "imagenet_a": (0, 7_500),
        "imagenet_r": (0, 30_000),
    }
)
"""Train and test images of the published splits. Source: CoOp (arXiv 2109.01134), appendix; ImageNet: ILSVRC 2012."""
