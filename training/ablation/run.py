"""Runs an ablation with the base-to-new protocol: one boosting run per boosting setting, then the method per setting.

The results folder is that of `caspl evaluate` and `caspl reproduce`: finished rows and bundles are reused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from training.ablation.settings import Grid, Setting, quarter_depths
from training.data.dataset import Dataset
from training.errors import RecipeError
from training.evaluation.bench import Bench, ShotSampler
from training.evaluation.paper_recipes import adapt_recipe, boost_recipe
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
        method: one of `ABLATED_METHODS`.
        depths: of each phase; empty for one layer and each quarter of the image tower.
        tokens, default_tokens, budgets: as in `Grid`.
        seeds: of sampling and training.
        shots: training images per base class.
        overrides: values of the method's recipe as `key=value`; they win over the setting's.
        boost_overrides: the same for phase 1.
        out: the results folder.
        checkpoint_every: steps between checkpoints.
    """

    datasets: tuple[Dataset, ...]
    studies: tuple[str, ...]
    method: str
    seeds: tuple[int, ...]
    shots: int
    out: Path
    depths: tuple[int, ...] = ()
    tokens: tuple[int, ...] = (4, 8, 16)
    default_tokens: int = 8
    budgets: tuple[int, ...] = (8, 16)
    overrides: tuple[str, ...] = ()
    boost_overrides: tuple[str, ...] = ()
    checkpoint_every: int = 100

    def check(self, grid: Grid) -> None:
        """Validate data sets and recipes of all settings, so that errors appear before the run starts.

        Raises:
            DatasetError, RecipeError: as `plan` and `boost_recipe`.
        """
        for dataset in self.datasets:
            for setting in grid.settings(self.studies):
                self.plan(dataset, setting)
                if setting.is_boosted:
                    self.boost_recipe(dataset, setting)

    def grid(self, student: Backbone) -> Grid:
        """The values to compare, for a student.

        Raises:
            RecipeError: an invalid value, or a depth beyond the student's image tower.
        """
        n_layers = student.n_vision_layers
        depths = self.depths or quarter_depths(n_layers)
        if max(depths) > n_layers:
            msg = (
                f"A depth of {max(depths)} exceeds the {n_layers} layers of {student.arch}'s image tower; use depths "
                f"from 1 to {n_layers}."
            )
            raise RecipeError(msg)
        return Grid(depths, self.tokens, self.default_tokens, self.budgets)

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

    def distinct(self, settings: Sequence[Setting]) -> list[Setting]:
        """The settings without those that overrides make equal to an earlier one."""
        found: dict[str, Setting] = {}
        dataset = self.datasets[0]
        for setting in settings:
            recipe = adapt_recipe(
                self.method,
                dataset,
                "base-to-new",
                shots=self.shots,
                boosted=setting.is_boosted,
                overrides=self.plan(dataset, setting).overrides,
            ).model_dump_json()
            boost = self.boost_recipe(dataset, setting).model_dump_json() if setting.is_boosted else ""
            found.setdefault(boost + recipe, setting)
        return list(found.values())


Measured = Mapping[Setting, tuple[Row, ...]]
"""Rows of each setting: those of the method, and the zero-shot row of its base model, for each data set."""


def run_ablation(
    job: AblationJob,
    settings: Sequence[Setting],
    student: Backbone,
    teacher: Backbone,
    console: Console,
    *,
    on_setting: Callable[[Measured], None] = lambda _: None,
) -> dict[Setting, tuple[Row, ...]]:
    """Measure every setting on every data set.

    Args:
        job: data, method and recipe values.
        settings: the settings, those with the same boosting prompts next to each other.
        student: the evaluated backbone.
        teacher: the larger backbone, which boosts the student.
        console: shows progress.
        on_setting: called with all rows so far after each setting of each data set.

    Raises:
        TrainingError: see its subclasses; finished rows and bundles are kept.
    """
    results, predictor, sampler = Results(job.out), Predictor(student), ShotSampler(console)
    measured: dict[Setting, tuple[Row, ...]] = dict.fromkeys(settings, ())
    n_runs = len(job.datasets) * len(settings)
    for dataset_number, dataset in enumerate(job.datasets):
        for number, setting in enumerate(settings, dataset_number * len(settings) + 1):
            console.print(f"setting {number}/{n_runs} on {dataset.name}: {setting}", markup=False, highlight=False)
            boost: Bundle | None = None
            if setting.is_boosted:
                recipe = job.boost_recipe(dataset, setting)
                boost = boost_on(
                    dataset, recipe, student, teacher, results, console, checkpoint_every=job.checkpoint_every
                )
            bench = Bench(predictor, results, console, boost, checkpoint_every=job.checkpoint_every, sampler=sampler)
            report = run_plan(job.plan(dataset, setting), [[bench]])
            measured[setting] = (*measured[setting], *report.rows)
            on_setting(measured)
    return measured
