"""`caspl reproduce` as a function: every table on every data set; the results file grows as rows finish."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from prompted_clip.backbone import Backbone
from training.evaluation.paper_recipes import boost_recipe
from training.evaluation.plan import Plan
from training.evaluation.reproduce import reproduce
from training.evaluation.rows import Results, Row
from training.evaluation.summary import Report
from training.reproduction.preflight import DatasetCheck
from training.reproduction.results_file import RESULTS_NAME, write_results
from training.reproduction.tables import PaperTable


@dataclass(frozen=True)
class ReproductionJob:
    """Inputs of a reproduction.

    Attributes:
        tables: the tables to run.
        seeds: of sampling and training.
        overrides: recipe values as `key=value` or `method.key=value`.
        boost_overrides: the same for phase 1.
        out: folder for results file, reports, and finished rows and bundles.
        checkpoint_every: steps between checkpoints.
    """

    tables: tuple[PaperTable, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    boost_overrides: tuple[str, ...]
    out: Path
    checkpoint_every: int = 100

    @property
    def names(self) -> tuple[str, ...]:
        """All data sets of the tables, each once."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table.datasets))

    def validate(self, checks: Sequence[DatasetCheck]) -> None:
        """Build every plan and boosting recipe, so that errors appear before the run starts.

        Raises:
            DatasetError, RecipeError: as `Plan` and `boost_recipe`.
        """
        for table in self.tables:
            for plan in self.plans(table, checks):
                boost_recipe(plan.sources[0], self.boost_overrides)

    def usable(self, checks: Sequence[DatasetCheck]) -> "ReproductionJob":
        """The job without data sets that have a problem, and without tables that nothing is left of."""
        left = [table.without(check.name for check in checks if check.problem) for table in self.tables]
        return replace(self, tables=tuple(table for table in left if table is not None))

    def plans(self, table: PaperTable, checks: Sequence[DatasetCheck]) -> list[Plan]:
        """One plan per training data set.

        Raises:
            DatasetError, RecipeError: as `Plan`.
        """
        datasets = {check.name: check.dataset for check in checks if check.dataset is not None}
        groups = [table.datasets] if table.is_transfer else [(name,) for name in table.datasets]
        return [
            Plan(
                table.protocol,
                tuple(datasets[name] for name in group),
                table.methods,
                self.seeds,
                table.shots,
                self.overrides,
            )
            for group in groups
        ]


def run_tables(
    job: ReproductionJob, checks: Sequence[DatasetCheck], student: Backbone, teacher: Backbone, console: Console
) -> Iterator[Report]:
    """Boost, adapt and evaluate; finished rows and bundles are reused.

    The results file is written after each training data set.

    Args:
        job: tables, seeds and recipe values.
        checks: the data sets; those with a problem must not be in the tables.
        student: the evaluated backbone.
        teacher: the larger backbone.
        console: shows progress.

    Yields:
        The report of each table.

    Raises:
        TrainingError: see its subclasses; finished rows and bundles are kept.
    """
    results, rows, device = Results(job.out), list[Row](), student.device
    save = partial(
        write_results,
        job.out / RESULTS_NAME,
        student=student.identity,
        teacher=teacher.identity,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        data={check.dataset.name: check.facts for check in checks if check.dataset and check.name in job.names},
        overrides=job.overrides,
        boost_overrides=job.boost_overrides,
    )
    for table in job.tables:
        n_before = len(rows)
        for plan in job.plans(table, checks):
            recipe = boost_recipe(plan.sources[0], job.boost_overrides)
            report = reproduce(plan, recipe, student, teacher, results, console, checkpoint_every=job.checkpoint_every)
            rows += report.rows
            save(rows)
        yield Report(table.protocol, student.identity, tuple(rows[n_before:]))
    console.print(f"wrote {job.out / RESULTS_NAME}", markup=False, soft_wrap=True)
