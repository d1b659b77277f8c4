"""Runs an ablation with the base-to-new protocol: one boosting run per boosting setting, then the method per setting.

The results folder is that of `caspl evaluate` and `caspl reproduce`: finished rows and bundles are reused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from training.ablation.settings import Grid, Setting
from training.data.dataset import Dataset
from training.evaluation.bench import Bench, ShotSampler
from training.evaluation.paper_recipes import boost_recipe
from training.evaluation.plan import Plan, run_plan
from training.evaluation.predict import Predictor
from training.evaluation.reproduce import boost_on
from training.evaluation.rows import Results, Row
from training.recipe import BoostRecipe


@dataclass(frozen=True)
class AblationJob:
    """Inputs of an ablation.

    Attributes:
        datasets: with train and test images; base-to-new on each.
        studies: some of `STUDIES`.
        grid: the values to compare.
        method: one of `ABLATED_METHODS`.
        seeds: of sampling and training.
        shots: training images per base class.
        out: the results folder.
        overrides: values of the method's recipe as `key=value`; they win over the setting's.
        boost_overrides: the same for phase 1.
        checkpoint_every: steps between checkpoints.
    """

    datasets: tuple[Dataset, ...]
    studies: tuple[str, ...]
    grid: Grid
    method: str
    seeds: tuple[int, ...]
    shots: int
    out: Path
    overrides: tuple[str, ...] = ()
    boost_overrides: tuple[str, ...] = ()
    checkpoint_every: int = 100

    @property
    def settings(self) -> list[Setting]:
        """The settings to measure; those with the same boosting prompts follow each other."""
        return self.grid.settings(self.studies)

    def check(self) -> None:
        """Validate data sets and recipes of all settings, so that errors appear before the run starts.

        Raises:
            DatasetError, RecipeError: as `plan` and `boost_recipe`.
        """
        for dataset in self.datasets:
            for setting in self.settings:
                self.plan(dataset, setting)
                if setting.is_boosted:
                    self.boost_recipe(dataset, setting)

    def plan(self, dataset: Dataset, setting: Setting) -> Plan:
        """The runs of one setting on one data set.

        Raises:
            DatasetError, RecipeError: as `Plan`.
        """
        overrides = (*setting.adapt_overrides(self.method), *self.overrides)
        return Plan("base-to-new", (dataset,), (self.method,), self.seeds, (self.shots,), overrides)

    def boost_recipe(self, dataset: Dataset, setting: Setting) -> BoostRecipe:
        """The phase 1 recipe of one setting on one data set.

        Raises:
            RecipeError: an unknown key or a value out of range.
        """
        return boost_recipe(dataset, [*setting.boost_overrides(), *self.boost_overrides])


Measured = Mapping[Setting, tuple[Row, ...]]
"""Rows of each setting: those of the method, and the zero-shot row of its base model, for each data set."""


def run_ablation(
    job: AblationJob,
    student: Backbone,
    teacher: Backbone,
    console: Console,
    *,
    on_setting: Callable[[Measured], None] = lambda _: None,
) -> dict[Setting, tuple[Row, ...]]:
    """Measure every setting on every data set.

    Args:
        job: data, settings, method and recipe values.
        student: the evaluated backbone.
        teacher: the larger backbone, which boosts the student.
        console: shows progress.
        on_setting: called with all rows so far after each setting of each data set.

    Raises:
        TrainingError: see its subclasses; finished rows and bundles are kept.
    """
    results, predictor, sampler = Results(job.out), Predictor(student), ShotSampler(console)
    measured: dict[Setting, tuple[Row, ...]] = dict.fromkeys(job.settings, ())
    work = [(dataset, setting) for dataset in job.datasets for setting in job.settings]
    for number, (dataset, setting) in enumerate(work, 1):
        console.print(f"setting {number}/{len(work)} on {dataset.name}: {setting}", markup=False, highlight=False)
        boost: Bundle | None = None
        if setting.is_boosted:
            recipe = job.boost_recipe(dataset, setting)
            boost = boost_on(dataset, recipe, student, teacher, results, console, checkpoint_every=job.checkpoint_every)
        bench = Bench(predictor, results, console, boost, checkpoint_every=job.checkpoint_every, sampler=sampler)
        report = run_plan(job.plan(dataset, setting), [[bench]])
        measured[setting] = (*measured[setting], *report.rows)
        on_setting(measured)
    return measured
