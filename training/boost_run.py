"""`caspl boost` as a function: train boosting prompts on unlabelled images and write a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from training.boost_scores import HeldOutScores
from training.boosting import Booster, Student
from training.caspl_student import CasplStudent
from training.data.class_list import check_class_names
from training.data.hold_out import describe_held_out, hold_out
from training.data.images import ImageFolder
from training.data.views import Views
from training.export import boost_provenance, export_bundle, finish_run
from training.files import digest_of
from training.loop import SINGLE_PROCESS, CheckpointConfig
from training.loop_progress import train_with_progress
from training.parallel import World
from training.progress import progress_bars
from training.promptkd_student import PromptKDStudent
from training.recipe import BoostRecipe
from training.selection import Selection
from training.teacher import Teacher
from training.unlabelled import report_folder


@dataclass(frozen=True)
class BoostJob:
    """Inputs and outputs of one boosting run.

    Attributes:
        domain: domain name.
        images: unlabelled images of the domain.
        class_names: all classes of the domain, base and new.
        out: bundle to write.
        checkpoint: checkpoint of the run in progress; deleted once the bundle is written.
        checkpoint_every: steps between checkpoints.
        tensorboard: folder for TensorBoard event files, or None.
        teacher_bundle: prompts for the teacher, as in PromptKD; None uses the plain teacher.
        labels: class index of each image, used only to measure accuracy on held-out images; None if unknown.
        holdout: fraction of the images that training does not use, to select the best step; 0 writes the last step.
        keep_worse: write the bundle even if the best step is worse than the plain student.
    """

    domain: str
    images: ImageFolder
    class_names: Sequence[str]
    out: Path
    checkpoint: Path
    checkpoint_every: int = 100
    tensorboard: Path | None = None
    teacher_bundle: Bundle | None = None
    labels: Sequence[int] | None = None
    holdout: float = 0.0
    keep_worse: bool = False


def run_boost(
    job: BoostJob,
    recipe: BoostRecipe,
    student_backbone: Backbone,
    teacher_backbone: Backbone,
    console: Console,
    *,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train boosting prompts and write the bundle; an interrupted run resumes from its checkpoint.

    Args:
        job: inputs and outputs.
        recipe: all settings of the run.
        student_backbone: the backbone to serve with.
        teacher_backbone: the larger backbone.
        console: shows progress.
        world: the processes of this run; the main process writes files.

    Returns:
        Metrics of the run, with the bundle's path and digest.

    Raises:
        TrainingError: any subclass; `job.out` is not written.
    """
    class_names, folder = job.class_names, job.images
    check_class_names(class_names, job.domain)
    report_folder(folder, console)
    trained, held_out = hold_out(len(folder.files), job.holdout, recipe.seed)
    views = Views.for_training([folder.files[index] for index in trained], student_backbone, recipe)
    teacher = Teacher(teacher_backbone, class_names, recipe.teacher_template, job.teacher_bundle)
    student: Student = (
        CasplStudent(student_backbone, class_names, recipe)
        if recipe.distillation == "caspl"
        else PromptKDStudent(student_backbone, teacher.text_features_KE, recipe)
    )
    booster = Booster(student, teacher, views, recipe)
    data_digests = {"images": folder.digest, "classes": digest_of("\n".join(class_names).encode())}
    identity = data_digests | {
        "recipe": digest_of(recipe.model_dump_json().encode()),
        "student": student_backbone.fingerprint,
        "teacher": teacher.digest or teacher_backbone.fingerprint,
        "holdout": str(job.holdout),
    }
    console.print(describe_held_out(len(held_out), len(trained)), highlight=False, soft_wrap=True)
    with progress_bars(console) as progress:
        if views.view_set(0) is not None:
            task = progress.add_task("teacher logits", total=len(views), note="")
            booster.precompute_teacher_logits(lambda n: progress.advance(task, n))
        selection = _selection(job, recipe, booster, held_out, console) if held_out else None
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
    metrics: dict[str, Any] = {
        "n_images": len(folder.files),
        "n_unreadable": len(folder.unreadable),
        **state.metrics(),
    }
    if selection is not None:
        selection.finish(booster, recipe, state.step, job.checkpoint, keep_worse=job.keep_worse)
        metrics |= selection.metrics()
    base_model, exported = student.fold()
    data = export_bundle(
        base_model,
        exported,
        domain=job.domain,
        class_names=class_names,
        template=recipe.template,
        provenance=boost_provenance(recipe=recipe, data_digests=data_digests, teacher=teacher, metrics=metrics),
    )
    return metrics | finish_run(data, job.out, job.checkpoint, world)


def _selection(
    job: BoostJob, recipe: BoostRecipe, booster: Booster, held_out: Sequence[int], console: Console
) -> Selection:
    """Selection by agreement with the teacher; `before` is the plain student with the teacher's template."""
    student = booster.student.backbone
    views = Views.as_served([job.images.files[index] for index in held_out], student.image_size, student.preprocess)
    labels = None if job.labels is None else [job.labels[index] for index in held_out]
    scores = HeldOutScores(views, labels, booster.teacher.logits)
    plain = Teacher(student, job.class_names, recipe.teacher_template)
    report = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    return Selection(lambda: scores.of(booster.served_logits), scores.of(plain.logits), len(held_out), report)
