"""`caspl adapt --labels none` as a function: learn from unlabelled images and class names, and write a bundle.

The images are in the order of their contents, and their digest is over contents alone, so that neither labels nor file
names have any effect on the bundle.

Legend: B rows, U images, K classes, E joint width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.provenance import new_provenance
from training.adapting.adapter import Adapter
from training.adapting.method import AdaptingMethod, Batch
from training.adapting.reference import TextSettings, class_template
from training.data.class_list import check_class_names
from training.data.images import ImageFolder
from training.data.view_cache import ViewCache
from training.data.views import Views
from training.export import export_bundle, finish_run
from training.files import digest_of
from training.label_free.method import Encoded, PseudoLabels, Unlabelled
from training.label_free.methods import LABEL_FREE
from training.loop import SINGLE_PROCESS, CheckpointConfig, TrainState
from training.loop_progress import train_with_progress
from training.parallel import World
from training.progress import progress_bars
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.scores import class_scores
from training.teacher import Teacher

NO_CHECK: Final = (
    "Without labels no images are held out, so the bundle is written even if it is worse than the base model. Measure "
    "it with `caspl evaluate` on a few labelled images."
)


@dataclass(frozen=True)
class LabelFreeJob:
    """Inputs and outputs of one label-free run.

    Attributes:
        domain: domain name.
        images: unlabelled images, ordered as in `unlabelled.by_content`.
        class_names: K names.
        out: bundle to write.
        checkpoint: checkpoint of the run in progress; a second training of the run adds `-2` to the name, and so on.
            All are deleted once the bundle is written.
        checkpoint_every: steps between checkpoints.
        tensorboard: folder for TensorBoard event files, with a folder for each of several trainings; or None.
        teacher: a larger CLIP that predicts the pseudo-labels; None for the base model.
    """

    domain: str
    images: ImageFolder
    class_names: Sequence[str]
    out: Path
    checkpoint: Path
    checkpoint_every: int = 100
    tensorboard: Path | None = None
    teacher: Backbone | None = None


def run_label_free(
    job: LabelFreeJob,
    method_name: str,
    recipe: TextSettings,
    base_model: PromptedBackbone,
    console: Console,
    *,
    encoded: Encoded | None = None,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Learn without labels and write the bundle; an interrupted run resumes from its checkpoint.

    Args:
        job: inputs and outputs.
        method_name: a key of `LABEL_FREE`.
        recipe: the method's recipe.
        base_model: the backbone to serve with, boosted or plain.
        console: shows progress.
        encoded: result of `encode` for this job that several runs share; None computes it.
        world: the processes of this run; the main process writes files.

    Returns:
        Metrics and losses of the run, with the bundle's path and digest.

    Raises:
        TrainingError: any subclass; `job.out` is not written.
    """
    check_class_names(job.class_names, job.domain)
    data_digests = {"images": job.images.digest, "classes": digest_of("\n".join(job.class_names).encode())}
    data_digests |= {"boost": base_model.boost_digest} if base_model.boost_digest is not None else {}
    encoded = encoded or encode(job.images.files, job.class_names, recipe, base_model, console, job.teacher)
    identity = data_digests | {"method": method_name, "backbone": base_model.backbone.fingerprint}
    checkpoints: list[Path] = []
    train = partial(_train, job, base_model, console, world, identity, checkpoints)
    score = partial(_score, job.images.files, base_model, encoded, console)
    learned = LABEL_FREE[method_name].learn(Unlabelled(base_model, job.class_names, encoded, train, score), recipe)
    metrics = {"n_images": len(job.images.files), "n_classes": len(job.class_names), **learned.metrics}
    metrics |= learned.trained.metrics() if learned.trained is not None else {}
    data = export_bundle(
        base_model,
        learned.exported,
        domain=job.domain,
        class_names=job.class_names,
        template=learned.template,
        provenance=new_provenance(
            method=method_name,
            phase="adapt",
            recipe=recipe.model_dump(),
            data_digests=data_digests,
            metrics=metrics,
            teacher=job.teacher.identity if job.teacher is not None else None,
            seed=getattr(recipe, "seed", None),
        ),
    )
    written = finish_run(data, job.out, checkpoints, world)
    return metrics | written | {"losses": learned.trained.losses if learned.trained is not None else []}


def encode(
    files: Sequence[Path],
    class_names: Sequence[str],
    recipe: TextSettings,
    base_model: PromptedBackbone,
    console: Console,
    teacher: Backbone | None = None,
) -> Encoded:
    """Run the frozen models once over all images.

    Args:
        files: U images.
        class_names: K names.
        recipe: provides the text of the classes.
        base_model: boosted or plain.
        console: shows progress.
        teacher: see `LabelFreeJob`.
    """
    backbone, template = base_model.backbone, class_template(base_model, recipe)

    def embed(pixels_BCHW: Tensor) -> Tensor:
        images = normalize_pixels(pixels_BCHW.to(backbone.device), backbone.preprocess)
        return base_model.encode_images(images).float().cpu()

    features_UE = _over_images(files, base_model, embed, "encoding images", console)
    text_KE = base_model.zero_shot_text(class_names, [template]).float().cpu()
    if teacher is None:
        return Encoded(features_UE, text_KE, class_scores(base_model.logit_scale, features_UE, text_KE), template)
    scores_UK = teacher_scores(teacher, files, class_names, recipe.template, console)
    return Encoded(features_UE, text_KE, scores_UK, template)


def teacher_scores(
    backbone: Backbone, files: Sequence[Path], class_names: Sequence[str], template: str, console: Console
) -> Tensor:
    """A larger CLIP's class scores z of all images, preprocessed as in serving: float32 [U, K], on the CPU."""
    teacher = Teacher(backbone, class_names, template)
    return _over_images(files, teacher, lambda pixels: teacher.logits(pixels).float().cpu(), "teacher", console)


def _over_images(
    files: Sequence[Path],
    model: PromptedBackbone | Teacher,
    compute: Callable[[Tensor], Tensor],
    title: str,
    console: Console,
) -> Tensor:
    """A frozen model's outputs for all images, preprocessed as in serving: [U, …]."""
    views = Views.as_served(files, model.backbone.image_size, model.backbone.preprocess)
    cache = ViewCache(views, compute)
    with progress_bars(console) as progress:
        task = progress.add_task(title, total=len(files), note="")
        cache.fill(0, lambda n: progress.advance(task, n))
    return cache.get(torch.arange(len(files)), 0)


def _train(
    job: LabelFreeJob,
    base_model: PromptedBackbone,
    console: Console,
    world: World,
    identity: dict[str, str],
    checkpoints: list[Path],
    method: AdaptingMethod,
    found: PseudoLabels,
    recipe: AdaptRecipe,
    *,
    iteration: tuple[int, int] = (1, 1),
) -> TrainState:
    """See `Train`; appends the path of the checkpoint to `checkpoints`."""
    number, n_iterations = iteration
    checkpoint = job.checkpoint.with_name(f"{job.checkpoint.name}-{number}") if number > 1 else job.checkpoint
    checkpoints.append(checkpoint)
    of_run = f", iteration {number} of {n_iterations}" if n_iterations > 1 else ""
    identity = identity | {
        "recipe": digest_of(recipe.model_dump_json().encode()),
        "pseudo-labels": digest_of(torch.stack([found.rows_N, found.labels_N]).numpy().tobytes()),
    }
    views = Views.for_training([job.images.files[row] for row in found.rows_N.tolist()], base_model.backbone, recipe)
    with progress_bars(console) as progress:
        return train_with_progress(
            Adapter(method, base_model, views, found.labels_N.tolist(), recipe),
            recipe,
            title=f"{identity['method']} on {job.domain}{of_run}",
            progress=progress,
            checkpoint=CheckpointConfig(checkpoint, identity, job.checkpoint_every),
            tensorboard=job.tensorboard / f"{number}" if job.tensorboard and n_iterations > 1 else job.tensorboard,
            selection=None,
            world=world,
        )


@torch.no_grad()
def _score(
    files: Sequence[Path], base_model: PromptedBackbone, encoded: Encoded, console: Console, method: AdaptingMethod
) -> Tensor:
    """See `Score`; image features of the base model are reused."""
    backbone, no_labels = base_model.backbone, torch.empty(0, dtype=torch.long)
    if "images" not in method.required_inputs:
        return method.logits(Batch(no_labels, features_BE=encoded.features_UE.to(backbone.device))).float().cpu()

    def score(pixels_BCHW: Tensor) -> Tensor:
        images = normalize_pixels(pixels_BCHW.to(backbone.device), backbone.preprocess)
        return method.logits(Batch(no_labels, images_BCHW=images)).float().cpu()

    return _over_images(files, base_model, score, "pseudo-labels", console)
