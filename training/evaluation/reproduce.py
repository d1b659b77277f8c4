"""Reproduces the paper's tables: boost on the unlabelled train split, then adapt and evaluate every method.

Source: CasPL (arXiv 2409.17805), sections 3.2 and 4.1. Phase 1 uses the images of all classes without labels and all
class names, base and new; phase 2 uses few labelled images of base classes. Interrupted runs resume: finished bundles
and rows are reused, training continues from its checkpoint.
"""

from collections.abc import Sequence

from rich.console import Console

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from training.boost_run import BoostJob, run_boost
from training.data.dataset import Dataset
from training.evaluation.bench import Bench, ShotSampler, domain_name, recipe_digest
from training.evaluation.plan import Plan, run_plan
from training.evaluation.predict import Predictor
from training.evaluation.rows import Results, short_digest, slug
from training.evaluation.summary import Report
from training.files import read_bundle_file
from training.recipe import BoostRecipe
from training.unlabelled import UnlabelledData, train_images_of


def reproduce(
    plan: Plan,
    boost_recipe: BoostRecipe,
    student: Backbone,
    teacher: Backbone,
    results: Results,
    console: Console,
    *,
    checkpoint_every: int = 100,
) -> Report:
    """Boost on each of the plan's sources, and run the plan with and without boosting prompts.

    Args:
        plan: protocol, data sets, methods and seeds.
        boost_recipe: phase 1 recipe.
        student: the evaluated backbone.
        teacher: the larger backbone.
        results: folder of finished rows and bundles.
        console: shows progress.
        checkpoint_every: steps between checkpoints.

    Raises:
        TrainingError: see its subclasses; finished rows and bundles are kept.
    """
    predictor, sampler = Predictor(student), ShotSampler(console)

    def bench(boost: Bundle | None) -> Bench:
        return Bench(predictor, results, console, boost, checkpoint_every=checkpoint_every, sampler=sampler)

    plain = bench(None)
    benches: list[Sequence[Bench]] = []
    for source in plan.sources:
        bundle = boost_on(source, boost_recipe, student, teacher, results, console, checkpoint_every=checkpoint_every)
        benches.append((plain, bench(bundle)))
    return run_plan(plan, benches)


def boost_on(
    dataset: Dataset,
    recipe: BoostRecipe,
    student: Backbone,
    teacher: Backbone,
    results: Results,
    console: Console,
    *,
    checkpoint_every: int = 100,
) -> Bundle:
    """Train the boosting bundle for a data set's train split, or load it from the results folder.

    Raises:
        DatasetError: no train images.
        TrainingError: as `run_boost`.
    """
    identity = {
        "data": dataset.digest,
        "recipe": recipe_digest(recipe),
        "student": student.fingerprint,
        "teacher": teacher.fingerprint,
    }
    out = results.training_folder(f"{slug(dataset.name)}-boost-{short_digest(identity)}") / "bundle.safetensors"
    if not out.is_file():
        domain = domain_name(dataset.name)
        job = BoostJob(
            domain=domain,
            sources={domain: UnlabelledData(train_images_of(dataset), dataset.class_names)},
            out=out,
            checkpoint=out.with_name("checkpoint"),
            checkpoint_every=checkpoint_every,
        )
        run_boost(job, recipe, student, [teacher], console)
    return read_bundle_file(out)
