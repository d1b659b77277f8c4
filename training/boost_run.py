"""`caspl boost` as a function: from a folder of images and a class list to a bundle on disk, with progress."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prompted_clip.backbone import Backbone
from training.boosting import Booster, BoostRun
from training.data.class_list import read_classes
from training.data.images import ImageFolder, find_images
from training.data.views import Views
from training.export import boost_provenance, fold_boosting
from training.recipe import BoostRecipe


@dataclass(frozen=True)
class BoostJob:
    """What to boost and where to put it.

    Attributes:
        domain: the domain's name in the service.
        images: folder of unlabelled images, subfolders included.
        classes: text file, one class name per line.
        out: the bundle to write.
        checkpoint: state of the run in progress; removed when the bundle stands.
        checkpoint_every: steps between checkpoints.
    """

    domain: str
    images: Path
    classes: Path
    out: Path
    checkpoint: Path
    checkpoint_every: int = 100


def run_boost(
    job: BoostJob, recipe: BoostRecipe, student: Backbone, teacher: Backbone, console: Console
) -> dict[str, Any]:
    """Learn boosting prompts and write the bundle; an interrupted run goes on from its checkpoint.

    Args:
        job: inputs and outputs.
        recipe: every choice of the run.
        student: the backbone that will serve.
        teacher: the larger backbone.
        console: where progress is shown.

    Returns:
        The run's metrics, with the bundle's path and digest.

    Raises:
        TrainingError: see its subclasses; nothing is written to `job.out`.
    """
    class_names = read_classes(job.classes)
    folder = find_images(job.images)
    _report_folder(folder, console)
    views = Views(
        folder.files,
        image_size=student.image_size,
        preprocess=student.preprocess,
        augmentation=recipe.augmentation,
        crop_scale_min=recipe.crop_scale_min,
        seed=recipe.seed,
    )
    booster = Booster(student, teacher, class_names, views, recipe)
    data_digests = {"images": folder.digest, "classes": _digest("\n".join(class_names).encode())}
    identity = data_digests | {
        "recipe": _digest(recipe.model_dump_json().encode()),
        "student": student.fingerprint,
        "teacher": teacher.fingerprint,
    }
    before = booster.agreement()
    run = _train_with_progress(booster, job, identity, console)
    metrics: dict[str, Any] = {
        "n_images": len(folder.files),
        "n_unreadable": len(folder.unreadable),
        "steps": run.step,
        "loss_first": run.losses[0],
        "loss_last": sum(run.losses[-20:]) / len(run.losses[-20:]),
        "teacher_agreement_before": before,
        "teacher_agreement_after": booster.agreement(),
    }
    data = fold_boosting(
        student,
        domain=job.domain,
        class_names=class_names,
        template=recipe.template,
        image_boost=booster.prompts.image_group(),
        text_boost=booster.prompts.text_group(),
        provenance=boost_provenance(
            recipe=recipe.model_dump(), data_digests=data_digests, teacher=teacher, metrics=metrics
        ),
    )
    _write_whole(job.out, data)
    job.checkpoint.unlink(missing_ok=True)
    return metrics | {"bundle": str(job.out), "digest": _digest(data), "size_bytes": len(data)}


def _train_with_progress(booster: Booster, job: BoostJob, identity: dict[str, str], console: Console) -> BoostRun:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        if not booster.views.is_random:
            teacher_task = progress.add_task("teacher answers", total=len(booster.views), note="")
            booster.prepare(lambda n: progress.advance(teacher_task, n))
        task = progress.add_task(f"boosting {job.domain}", total=booster.n_steps, note="")

        def show(run: BoostRun) -> None:
            recent = run.losses[-20:]
            progress.update(task, completed=run.step, note=f"loss {sum(recent) / len(recent):.3f}")

        return booster.train(
            checkpoint=job.checkpoint, identity=identity, checkpoint_every=job.checkpoint_every, on_step=show
        )


def _report_folder(folder: ImageFolder, console: Console) -> None:
    console.print(f"{len(folder.files)} images below {folder.root}")
    if folder.unreadable:
        named = ", ".join(str(path.relative_to(folder.root)) for path in folder.unreadable[:5])
        more = f" and {len(folder.unreadable) - 5} more" if len(folder.unreadable) > 5 else ""
        console.print(f"[yellow]skipped {len(folder.unreadable)} unreadable: {named}{more}[/yellow]")


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
