"""`caspl boost` as a function: train boosting prompts on unlabelled images and write a bundle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.transfers import to_device
from training.boost_sources import BoostSources
from training.boosting import Booster, Student
from training.caspl_student import CasplStudent
from training.data.hold_out import describe_held_out
from training.data.views import Views
from training.errors import RecipeError
from training.export import boost_provenance, export_bundle, finish_run
from training.files import digest_of
from training.loop import SINGLE_PROCESS, CheckpointConfig
from training.loop_progress import train_with_progress
from training.parallel import World
from training.progress import progress_bars
from training.prompted_backbone import PromptedBackbone, boosted_backbone
from training.promptkd_student import PromptKDStudent
from training.recipe import BoostRecipe
from training.scores import class_scores
from training.selection import Selection, describe_scores
from training.teacher import Teacher
from training.teacher_choice import check_teachers, describe_teachers, pair_bundles
from training.unlabelled import UnlabelledData, report_folder


@dataclass(frozen=True)
class BoostJob:
    """Inputs and outputs of one boosting run.

    Attributes:
        domain: domain name of the bundle.
        sources: unlabelled images and all classes, base and new, of the domain to learn, or of several that share the
            prompts, by name. Labels only measure accuracy on held-out images.
        out: bundle to write.
        checkpoint: checkpoint of the run in progress; deleted once the bundle is written.
        checkpoint_every: steps between checkpoints.
        tensorboard: folder for TensorBoard event files, or None.
        teacher_bundles: prompts for teachers, as in PromptKD, each for the first teacher of its backbone that has
            none; other teachers are plain.
        start: a boosting bundle whose prompts training starts from; None starts as the recipe describes.
        boost: a boosting bundle whose frozen prompts PromptKD's student is trained on; None uses the plain student.
        holdout: fraction of each domain's images that training does not use, to select the best step; 0 writes the
            last step.
        keep_worse: write the bundle even if the best step is worse than the model was before.
    """

    domain: str
    sources: Mapping[str, UnlabelledData]
    out: Path
    checkpoint: Path
    checkpoint_every: int = 100
    tensorboard: Path | None = None
    teacher_bundles: Sequence[Bundle] = ()
    start: Bundle | None = None
    boost: Bundle | None = None
    holdout: float = 0.0
    keep_worse: bool = False


def run_boost(
    job: BoostJob,
    recipe: BoostRecipe,
    student_backbone: Backbone,
    teacher_backbones: Sequence[Backbone],
    console: Console,
    *,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train boosting prompts and write the bundle; an interrupted run resumes from its checkpoint.

    Args:
        job: inputs and outputs.
        recipe: all settings of the run.
        student_backbone: the backbone to serve with.
        teacher_backbones: the larger backbone, or several whose predictions are averaged (`teacher_weights`).
        console: shows progress.
        world: the processes of this run; the main process writes files.

    Returns:
        Metrics of the run, with the bundle's path and digest.

    Raises:
        TrainingError: any subclass; `job.out` is not written.
    """
    sources = BoostSources.of(job.sources, recipe, job.holdout)
    for source in sources.data.values():
        report_folder(source.images, console)
    views = Views.for_training(sources.trained_files, student_backbone, recipe)
    pairs = pair_bundles(teacher_backbones, job.teacher_bundles)
    models = [sources.models(backbone, bundle) for backbone, bundle in pairs]
    teachers = [Teacher.joined(list(of_domains.values())) for of_domains in models]
    digests = [teacher.digest or teacher.backbone.fingerprint for teacher in teachers]
    check_teachers(digests, recipe)
    base_model = (
        PromptedBackbone(student_backbone) if job.boost is None else boosted_backbone(student_backbone, job.boost)
    )
    student = _student(job, recipe, base_model, sources, teachers[0])
    booster = Booster(student, teachers, views, recipe, sources.sets)
    bundles = {"start": job.start, "boost": job.boost}
    data_digests = sources.digests() | {name: bundle.digest for name, bundle in bundles.items() if bundle is not None}
    identity = data_digests | {
        "recipe": digest_of(recipe.model_dump_json().encode()),
        "student": student_backbone.fingerprint,
        "teacher": " ".join(digests),
        "holdout": str(job.holdout),
    }
    report = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    report(describe_held_out(sources.n_held_out, len(views)))
    if len(teachers) > 1:
        report(describe_teachers(teachers, recipe))
    with progress_bars(console) as progress:
        if views.view_set(0) is not None:
            task = progress.add_task("teacher logits", total=len(views), note="")
            booster.precompute_teacher_logits(lambda n: progress.advance(task, n))
        selection = None
        if sources.n_held_out:
            scores = sources.held_out_scores(student_backbone, models)
            if job.boost is None:
                before = scores.of_each(sources.models(student_backbone))
            else:
                before = scores.of_shared(_zero_shot(base_model, sources.sets.names, recipe))
            if job.start is not None:
                started = scores.of_shared(booster.served_logits)
                report(f"Held-out images, plain student: {describe_scores(before)}")
                report(f"Held-out images, prompts of the start: {describe_scores(started)}")
                before = max(before, started, key=lambda found: found["agreement"])
            selection = Selection(lambda: scores.of_shared(booster.served_logits), before, sources.n_held_out, report)
        state = train_with_progress(
            booster,
            recipe,
            title=f"boosting {job.domain}",
            progress=progress,
            checkpoint=CheckpointConfig(job.checkpoint, identity, job.checkpoint_every),
            tensorboard=job.tensorboard,
            selection=selection,
            world=world,
        )
    metrics: dict[str, Any] = sources.facts() | state.metrics()
    if selection is not None:
        selection.finish(booster, recipe, state.step, job.checkpoint, keep_worse=job.keep_worse)
        metrics |= selection.metrics()
        if fallen := sources.fallen(selection.before, selection.best):
            report(f"Worse than before on held-out images of {', '.join(fallen)}.", style="yellow")
    model, exported = student.fold()
    data = export_bundle(
        model,
        exported,
        domain=job.domain,
        class_names=sources.sets.names,
        template=model.template or recipe.template,
        provenance=boost_provenance(recipe=recipe, data_digests=data_digests, teachers=teachers, metrics=metrics),
    )
    return metrics | finish_run(data, job.out, [job.checkpoint], world)


def _student(
    job: BoostJob, recipe: BoostRecipe, base_model: PromptedBackbone, sources: BoostSources, teacher: Teacher
) -> Student:
    """The recipe's student, with the prompts of the start, or on boosting prompts, if there are any.

    Raises:
        BoostBundleError: the start was made for another backbone, or contains no boosting prompts.
        RecipeError: the start does not fit the recipe, or boosting prompts for a student other than PromptKD's.
    """
    backbone = base_model.backbone
    start = None if job.start is None else boosted_backbone(backbone, job.start)
    if recipe.distillation == "caspl":
        if job.boost is not None:
            msg = "Only PromptKD trains on frozen boosting prompts: set distillation=promptkd, or use --start."
            raise RecipeError(msg)
        return CasplStudent(backbone, sources.sets.names, recipe, start)
    if start is not None:
        msg = "distillation=promptkd cannot start from a bundle: its projector is new. Use distillation=caspl."
        raise RecipeError(msg)
    return PromptKDStudent(base_model, teacher.text_features_KE, recipe)


def _zero_shot(
    base_model: PromptedBackbone, class_names: Sequence[str], recipe: BoostRecipe
) -> Callable[[Tensor], Tensor]:
    """A model's class scores [B, K] for uint8 images, with the text it was boosted with."""
    backbone = base_model.backbone
    text_KE = base_model.zero_shot_text(class_names, [base_model.template or recipe.teacher_template])

    def logits(pixels_BCHW: Tensor) -> Tensor:
        images = normalize_pixels(to_device(pixels_BCHW, backbone.device), backbone.preprocess)
        return class_scores(base_model.logit_scale, base_model.encode_images(images), text_KE)

    return logits
