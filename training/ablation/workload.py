"""The runs of an ablation before it starts, with an estimate of their duration."""

from typing import Any

from prompted_clip.backbone import Backbone
from training.ablation.run import AblationJob
from training.ablation.settings import Setting
from training.data.few_shot import base_and_new, few_shot
from training.evaluation.estimate import Timer, format_duration
from training.evaluation.paper_recipes import adapt_recipe


def plan_of(
    job: AblationJob,
    student: Backbone,
    teacher: Backbone,
    images_per_second: float | None = None,
) -> dict[str, Any]:
    """The runs of every setting, and their estimated duration; finished runs are not left out.

    Phase 1 is timed at the setting with the most and deepest boosting prompts, phase 2 at the one with the most
    prompts, so the estimate is an upper bound.

    Args:
        job: data, settings, method and recipe values.
        student: the evaluated backbone.
        teacher: the larger backbone.
        images_per_second: a rate instead of a timing.

    Returns:
        A JSON object with `settings`, `boosting_runs`, `adapting_runs`, `n_images`, `seconds`, `estimated_from` and the
        line `summary`.
    """
    timer = Timer(student, teacher, images_per_second)
    settings = job.settings
    largest = max(settings, key=lambda each: (each.total_tokens, each.adapting_depth))
    boosted = [setting for setting in settings if setting.is_boosted]
    first_of: dict[tuple[int, int], Setting] = {}
    for setting in boosted:
        first_of.setdefault((setting.boosting_tokens, setting.boosting_depth), setting)
    n_boosts, n_adapts = len(first_of), len(settings) * len(job.seeds)
    n_datasets, seconds, n_images = len(job.datasets), 0.0, 0
    rows = [
        {
            "setting": str(setting),
            "boosting_runs": n_datasets if setting in first_of.values() else 0,
            "adapting_runs": n_datasets * len(job.seeds),
        }
        for setting in settings
    ]
    for dataset in job.datasets:
        heaviest = max(boosted, key=lambda each: each.boosting_tokens * each.boosting_depth, default=None)
        recipe = job.boost_recipe(dataset, heaviest) if heaviest is not None else None
        base, _ = base_and_new(few_shot(dataset, job.shots, seed=job.seeds[0]))
        adapt = adapt_recipe(
            job.method,
            dataset,
            "base-to-new",
            shots=job.shots,
            boosted=largest.is_boosted,
            overrides=job.plan(dataset, largest).overrides,
        )
        parts = [(n_adapts, timer.adapting(base, job.method, adapt, recipe))]
        if recipe is not None:
            parts.append((n_boosts, timer.boosting(dataset, recipe)))
        parts.append((n_adapts + n_boosts, timer.testing(dataset, len(dataset.split("test")))))
        seconds += sum(count * work.seconds for count, work in parts)
        n_images += sum(count * work.n_images for count, work in parts)
    boosting_runs, adapting_runs = n_datasets * n_boosts, n_datasets * n_adapts
    return {
        "settings": rows,
        "boosting_runs": boosting_runs,
        "adapting_runs": adapting_runs,
        "n_images": n_images,
        "seconds": seconds,
        "estimated_from": timer.source,
        "summary": f"{boosting_runs} boosting runs and {adapting_runs} adapting runs, {n_images:,} images through the "
        f"models: at most {format_duration(seconds)}, from {timer.source}",
    }
