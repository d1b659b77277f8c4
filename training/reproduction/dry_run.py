"""`caspl reproduce --dry-run`: problems with data and weights, and an estimate of time and disk space."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from prompted_clip.backbone import Backbone
from prompted_clip.errors import PromptedClipError
from training.errors import TrainingError
from training.evaluation.estimate import Timer
from training.label_free.methods import LABEL_FREE
from training.reproduction.preflight import check_datasets
from training.reproduction.run import ReproductionJob
from training.reproduction.workload import estimate


def plan_of(
    job: ReproductionJob,
    root: Path | None,
    load: Callable[[], tuple[Backbone, Backbone]],
    images_per_second: float | None,
    console: Console,
) -> dict[str, Any]:
    """Check all data sets and both weights, and estimate the data sets that are usable; trains nothing.

    Args:
        job: tables, seeds and recipe values.
        root: folder with the published data sets.
        load: loads both backbones.
        images_per_second: rate for the estimate; None times a few steps.
        console: shows progress.

    Returns:
        A JSON object: `datasets` (found or not, counts, bytes, notes), `problems`, `estimates` per training data set,
        `not_estimated` (label-free methods, whose training is not in the estimates), `seconds`, `results_bytes` and
        `estimated_from`; the last three are None if nothing can be estimated.

    Raises:
        RecipeError: an invalid override.
    """

    def note(name: str) -> None:
        console.print(f"checking {name}", markup=False, highlight=False)

    checks = check_datasets(job.names, root, note)
    problems = [check.problem for check in checks if check.problem]
    usable = job.usable(checks)
    usable.validate(checks)
    backbones = None
    try:
        backbones = load()
    except (PromptedClipError, TrainingError) as error:
        problems.append(f"weights: {error}")
    plan: dict[str, Any] = {
        "datasets": [
            {
                "name": check.name,
                "found": not check.problem,
                "n_train": check.n_train,
                "n_test": check.n_test,
                "bytes": check.n_bytes,
                "notes": list(check.notes),
            }
            for check in checks
        ],
        "problems": problems,
        "estimates": [],
        "not_estimated": [name for name in LABEL_FREE if any(name in table.methods for table in job.tables)],
        "seconds": None,
        "results_bytes": None,
        "estimated_from": None,
    }
    if backbones is None or not usable.tables:
        return plan
    timer = Timer(*backbones, images_per_second)
    for each in estimate(usable, checks, backbones[0], timer):
        console.print(f"estimated {each.name}", markup=False, highlight=False)
        plan["estimates"].append(asdict(each))
    return plan | {
        "seconds": sum(each["seconds"] for each in plan["estimates"]),
        "results_bytes": sum(each["results_bytes"] for each in plan["estimates"]),
        "estimated_from": timer.source,
    }
