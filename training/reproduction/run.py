"""`caspl reproduce --all` as a function: every table on every data set; the results file grows as rows finish."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prompted_clip.backbone import Backbone
from training.data.dataset import Dataset
from training.evaluation.output import write_report
from training.evaluation.paper_recipes import boost_recipe
from training.evaluation.plan import Plan
from training.evaluation.reproduce import reproduce
from training.evaluation.rows import Results, Row
from training.evaluation.summary import Report
from training.reproduction.preflight import DatasetCheck
from training.reproduction.results_file import RESULTS_NAME, ResultsFile, write_results
from training.reproduction.tables import PaperTable


@dataclass(frozen=True)
class ReproductionJob:
    """Inputs of a reproduction.

    Attributes:
        tables: the tables, restricted to the data sets that exist.
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
        datasets = {check.name: check.dataset for check in checks if check.dataset is not None}
        for table in self.tables:
            for plan in self.plans(table, datasets):
                boost_recipe(plan.sources[0], self.boost_overrides)

    def plans(self, table: PaperTable, datasets: Mapping[str, Dataset]) -> list[Plan]:
        """One plan per training data set.

        Raises:
            DatasetError, RecipeError: as `Plan`.
        """
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
) -> ResultsFile:
    """Boost, adapt and evaluate all tables; finished rows and bundles are reused.

    The results file is written after each training data set, and a report with plots after each table.

    Args:
        job: tables, seeds and recipe values.
        checks: the data sets; those with a problem must not be in the tables.
        student: the evaluated backbone.
        teacher: the larger backbone.
        console: shows progress.

    Raises:
        TrainingError: see its subclasses; finished rows and bundles are kept.
    """
    datasets = {check.name: check.dataset for check in checks if check.dataset is not None}
    facts = {check.name: data_facts(check) for check in checks if check.name in job.names}
    results, rows = Results(job.out), list[Row]()
    written = save_results(job.out, rows, job, facts, student, teacher)
    for table in job.tables:
        of_table: list[Row] = []
        for plan in job.plans(table, datasets):
            recipe = boost_recipe(plan.sources[0], job.boost_overrides)
            report = reproduce(plan, recipe, student, teacher, results, console, checkpoint_every=job.checkpoint_every)
            of_table += report.rows
            written = save_results(job.out, [*rows, *of_table], job, facts, student, teacher)
        rows += of_table
        whole = Report(table.protocol, student.identity, tuple(of_table))
        write_report(whole, results, job.out / table.protocol, console)
    console.print(f"wrote {job.out / RESULTS_NAME}", markup=False, soft_wrap=True)
    return written


def save_results(
    folder: Path,
    rows: Sequence[Row],
    job: ReproductionJob,
    data: dict[str, dict[str, Any]],
    student: Backbone,
    teacher: Backbone,
) -> ResultsFile:
    """Write the results file of the rows so far."""
    return write_results(
        folder / RESULTS_NAME,
        rows,
        student=student.identity,
        teacher=teacher.identity,
        device=_device_name(student),
        data=data,
        overrides=job.overrides,
        boost_overrides=job.boost_overrides,
    )


def data_facts(check: DatasetCheck) -> dict[str, Any]:
    """The results file's entry for a data set."""
    digest = check.dataset.digest if check.dataset is not None else ""
    return {"digest": digest, "n_train": check.n_train, "n_test": check.n_test, "notes": list(check.notes)}


def _device_name(backbone: Backbone) -> str:
    import torch  # noqa: PLC0415

    device = backbone.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
