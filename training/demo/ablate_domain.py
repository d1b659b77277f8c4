"""The ablations of the CasPL paper in one demo domain, small enough for a few minutes of one core.

The first 20 classes, 40 training images of each. Only numbers and depths of image prompts vary: the text prompts keep
the demo's recipes, because untrained text tokens before the boosting tokens reduce the demo student's accuracy (see
`crowding.py`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from prompted_clip.backbone import load_backbone
from training.ablation.output import write_ablation
from training.ablation.report import AblationReport
from training.ablation.run import AblationJob, run_ablation
from training.ablation.settings import STUDIES
from training.data.folder_per_class import read_class_folders
from training.demo.adapt_domains import read_recipes
from training.demo.boost_domains import RECIPE
from training.demo.evaluate import TEST_SEED
from training.demo.folders import write_labelled
from training.recipe import BoostRecipe, Recipe, read_recipe

METHOD: Final = "promptsrc"
DEPTHS: Final = (1, 2, 4)
TOKENS: Final = (4, 8)
BUDGETS: Final = (8, 16)
N_CLASSES: Final = 20
N_TRAIN_PER_CLASS: Final = 40
N_TEST: Final = 600
SHOTS: Final = 16
BOOST_EPOCHS: Final = 6
ADAPT_VALUES: Final[Mapping[str, Any]] = {"epochs": 12, "gpa_mean": 10.0, "gpa_std": 3.0}
"""Twice the epochs of `adapt.toml`, because the base classes are a quarter as many; the average scales with them."""


def ablate_domain(domain: str, work_dir: Path, seeds: Sequence[int], console: Console) -> AblationReport:
    """Run all studies in one domain; finished runs in the work folder are reused.

    Args:
        domain: a name of `DRAWN`.
        work_dir: folder for images, rows, bundles, plots and the report.
        seeds: of sampling and training in phase 2.
        console: shows progress.
    """
    images = work_dir / "images" / domain
    if not images.exists():
        write_labelled(domain, images, shots=N_TRAIN_PER_CLASS, n_test=N_TEST, test_seed=TEST_SEED, n_classes=N_CLASSES)
    boost, adapt = read_recipe(BoostRecipe, RECIPE), read_recipes()[METHOD]
    job = AblationJob(
        datasets=(read_class_folders(images),),
        studies=STUDIES,
        method=METHOD,
        seeds=tuple(seeds),
        shots=SHOTS,
        out=work_dir / domain,
        depths=DEPTHS,
        tokens=TOKENS,
        budgets=BUDGETS,
        overrides=_values(adapt, ADAPT_VALUES),
        boost_overrides=_values(boost, {"epochs": BOOST_EPOCHS}),
    )
    student, teacher = load_backbone("demo-student"), load_backbone("demo-teacher")
    grid = job.grid(student)
    measured = run_ablation(job, grid.settings(STUDIES), student, teacher, console)
    facts = {"student": student.identity, "teacher": teacher.identity}
    report = AblationReport(job, grid, measured, facts)
    write_ablation(report, job.out, console)
    return report


def write_results(report: AblationReport, path: Path) -> None:
    """Write rates of all settings, base models and findings as JSON; rows with base, new and H only."""
    content: dict[str, Any] = report.to_json()
    kept = ("boosting_tokens", "boosting_depth", "adapting_tokens", "adapting_depth", "learnable", "method", "seed")
    content["rows"] = [
        {name: row[name] for name in kept} | {name: round(row[name], 2) for name in ("base", "new", "h")}
        for row in content["rows"]
    ]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _values(recipe: Recipe, changes: Mapping[str, Any]) -> tuple[str, ...]:
    """A demo recipe with some changes as `key=value`, without the values that the settings vary."""
    varied = {"image_tokens", "image_depth", "boosting", "seed"}
    values = {key: value for key, value in recipe.model_dump().items() if key not in varied} | dict(changes)
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
