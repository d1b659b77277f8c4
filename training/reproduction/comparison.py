"""Compares a results file with the tables of the CasPL paper."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from training.evaluation.caspl_tables import (
    BOOSTED_H,
    DOMAIN_GENERALISATION,
    FEW_SHOT,
    SHOTS,
    TRANSFER_TARGETS,
)
from training.evaluation.metrics import Spread, spreads
from training.evaluation.published import published
from training.evaluation.rows import ZERO_SHOT
from training.reproduction.results_file import Cell, ResultRow, ResultsFile
from training.reproduction.tables import TABLES

PAPER_STUDENT: Final = ("ViT-B-16", "openai")
PAPER_TEACHER: Final = ("ViT-L-14", "openai")


@dataclass(frozen=True)
class ComparedCell:
    """One row of the paper and the measured one.

    Attributes:
        cell: what it measures.
        paper: printed rates by measure.
        measured: rates over seeds by measure; empty if the file has no such row.
        agrees: every difference is within the tolerance; None without a measured row.
    """

    cell: Cell
    paper: Mapping[str, float]
    measured: Mapping[str, Spread]
    agrees: bool | None

    @property
    def differences(self) -> dict[str, float]:
        """Measured minus printed, in points."""
        return {name: found.mean - self.paper[name] for name, found in self.measured.items()}


def compare(results: ResultsFile, tolerance: float) -> list[ComparedCell]:
    """Every cell of the paper's tables that the file could have, in the paper's order.

    Tables without any measured row are left out.

    Args:
        results: the file.
        tolerance: largest difference in points that counts as agreement.
    """
    by_cell: dict[Cell, list[ResultRow]] = {}
    for row in results.rows:
        by_cell.setdefault(row.cell, []).append(row)
    measured_tables = {row.protocol for row in results.rows}
    compared = []
    for cell, paper in paper_cells():
        if cell.protocol not in measured_tables:
            continue
        measured = spreads(by_cell.get(cell, []), paper)
        agrees = all(abs(found.mean - paper[name]) <= tolerance for name, found in measured.items())
        compared.append(ComparedCell(cell, paper, measured, agrees if measured else None))
    return compared


def paper_cells() -> Iterator[tuple[Cell, dict[str, float]]]:
    """All printed rows with their rates."""
    for table in TABLES.values():
        for target in table.datasets:
            dataset = table.datasets[0] if table.is_transfer else target
            for method in (ZERO_SHOT, *table.methods):
                for boosted in (False, True):
                    for shots in (0,) if method == ZERO_SHOT else table.shots:
                        cell = Cell(table.protocol, dataset, target, method, boosted, shots)
                        if paper := _printed(cell):
                            yield cell, paper


def model_notes(results: ResultsFile) -> list[str]:
    """Reasons why results may not be comparable with the paper's."""
    notes = []
    for role, facts, expected in (
        ("student", results.student, PAPER_STUDENT),
        ("teacher", results.teacher, PAPER_TEACHER),
    ):
        if (facts.arch.removesuffix("-quickgelu"), facts.pretrained) != expected:
            notes.append(
                f"The {role} is {facts.arch} with weights {facts.pretrained}; the paper's is {' with '.join(expected)}."
            )
    if results.overrides or results.boost_overrides:
        notes.append(f"Recipes were changed: {', '.join([*results.overrides, *results.boost_overrides])}.")
    notes += [note for facts in results.data.values() for note in facts.notes]
    fewest: dict[str, int] = {}
    for row in results.rows:
        if row.accuracy is not None or row.h is not None:
            fewest[row.target] = min(row.n_images, fewest.get(row.target, row.n_images))
    return notes + [
        f"{name}: only {n_images:,} of {results.data[name].n_test:,} test images could be read."
        for name, n_images in fewest.items()
        if n_images < results.data[name].n_test
    ]


def advice(compared: Sequence[ComparedCell]) -> str | None:
    """Advice if plain zero-shot rows differ, which involve no training; None if they agree."""
    differing = [each.cell for each in compared if each.agrees is False]
    wrong = [cell.target for cell in differing if cell.method == ZERO_SHOT and not cell.boosted]
    if not wrong:
        return None
    return (
        f"The plain zero-shot rows differ on {', '.join(dict.fromkeys(wrong))}: compare weights, splits, class names "
        "and prompts first, since these rows involve no training."
    )


def _printed(cell: Cell) -> dict[str, float]:
    protocol, dataset, target, method, boosted, shots = cell
    if protocol == "base-to-new":
        if found := published(dataset, method, boosted=boosted):
            return {"base": found.base, "new": found.new, "h": found.h}
        return {"h": BOOSTED_H[dataset]} if method == ZERO_SHOT and boosted else {}
    if protocol == "few-shot":
        rates = FEW_SHOT[dataset].get((method, boosted))
        return {"accuracy": rates[SHOTS.index(shots)]} if rates else {}
    if target not in TRANSFER_TARGETS:
        return {}
    return {"accuracy": DOMAIN_GENERALISATION[method, boosted][TRANSFER_TARGETS.index(target)]}
