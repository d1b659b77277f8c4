"""`caspl adapt --labels none` as a function: learn from unlabelled images and class names, and write a bundle.

The images are in the order of their contents, and their digest is over contents alone, so that neither labels nor file
names have any effect on the bundle.

Legend: B rows, U images, K classes, E joint width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.provenance import new_provenance
from training.adapting.adapter import Adapter
from training.adapting.method import AdaptingMethod
from training.adapting.reference import TextSettings, class_template
from training.data.class_list import check_class_names
from training.data.images import ImageFolder
from training.data.view_cache import ViewCache
from training.data.views import Views
from training.export import export_bundle
from training.files import digest_of, write_atomic
from training.label_free.method import Encoded, PseudoLabels, Unlabelled
from training.label_free.methods import LABEL_FREE
from training.loop import SINGLE_PROCESS, CheckpointConfig
from training.loop_progress import train_with_progress
from training.parallel import World
from training.progress import progress_bars
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.scores import class_scores
from training.teacher import Teacher

NO_CHECK: Final = (
    "Without labels no images are held out: the last step is written, and nothing checks whether it is better than the "
    "model was before. Measure it with `caspl evaluate` on a few labelled images."
)


@dataclass(frozen=True)
class LabelFreeJob:
    """Inputs and outputs of one label-free run.

    Attributes:
        domain: domain name.
        images: unlabelled images, see `unlabelled.by_content`.
        class_names: K names.
        out: bundle to write.
        checkpoint: checkpoint of the run in progress; further trainings of the same run append their number.
        checkpoint_every: steps between checkpoints.
        tensorboard: folder for TensorBoard event files, or None.
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
    """Learn without labels and write the bundle; an interrupted run resumes from its checkpoints.

    Args:
        job: inputs and outputs.
        method_name: a key of `LABEL_FREE`.
        recipe: the method's recipe.
        base_model: the backbone to serve with, boosted or plain.
        console: shows progress.
        encoded: the result of `encode` for this job, if several runs share it; None computes it.
        world: the processes of this run; the main process writes files.

    Returns:
        Metrics and losses of the run, with the bundle's path and digest.

    Raises:
        TrainingError: any subclass; `job.out` is not written.
    """
    check_class_names(job.class_names, job.domain)
    data_digests = {"images": job.images.digest, "classes": digest_of("\n".join(job.class_names).encode())}
    data_digests |= {"boost": base_model.boost_digest} if base_model.boost_digest is not None else {}
    trainer = _Trainer(job, method_name, base_model, console, world, data_digests)
    found = encoded or encode(job, recipe, base_model, console)
    unlabelled = Unlabelled(base_model, job.class_names, found, trainer)
    learned = LABEL_FREE[method_name].learn(unlabelled, recipe)
    metrics = {"n_images": len(job.images.files), "n_classes": len(job.class_names), **learned.metrics}
    metrics |= trainer.metrics()
    seed = getattr(recipe, "seed", None)
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
            teacher=None if job.teacher is None else job.teacher.identity,
            seed=seed,
        ),
    )
    if world.is_main:
        write_atomic(job.out, data)
        trainer.clean_up()
    return metrics | {
        "bundle": str(job.out),
        "digest": digest_of(data),
        "size_bytes": len(data),
        "losses": trainer.losses,
    }


def encode(job: LabelFreeJob, recipe: TextSettings, base_model: PromptedBackbone, console: Console) -> Encoded:
    """Run the frozen models once over all images.

    Args:
        job: images, class names and teacher.
        recipe: provides the text of the classes.
        base_model: boosted or plain.
        console: shows progress.
    """
    backbone, template = base_model.backbone, class_template(base_model, recipe)

    def embed(pixels_BCHW: Tensor) -> Tensor:
        images = normalize_pixels(pixels_BCHW.to(backbone.device), backbone.preprocess)
        return base_model.encode_images(images).float().cpu()

    features_UE = _over_images(job.images.files, base_model, embed, f"encoding images of {job.domain}", console)
    text_KE = base_model.zero_shot_text(job.class_names, [template]).float().cpu()
    if job.teacher is None:
        return Encoded(features_UE, text_KE, class_scores(base_model.logit_scale, features_UE, text_KE), template)
    scores_UK = teacher_scores(job.teacher, job.images.files, job.class_names, recipe.template, console)
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


class _Trainer:
    """The `Train` of one run; collects losses and checkpoints of all its trainings."""

    def __init__(
        self,
        job: LabelFreeJob,
        method_name: str,
        base_model: PromptedBackbone,
        console: Console,
        world: World,
        data_digests: dict[str, str],
    ) -> None:
        self.losses: list[float] = []
        self._job, self._method_name, self._base_model = job, method_name, base_model
        self._console, self._world, self._data_digests = console, world, data_digests
        self._checkpoints: list[Path] = []

    def __call__(
        self,
        method: AdaptingMethod,
        found: PseudoLabels,
        recipe: AdaptRecipe,
        *,
        part: int = 0,
        weak_features_NE: Tensor | None = None,
    ) -> None:
        """See `Train`."""
        job, base_model = self._job, self._base_model
        path = job.checkpoint.with_name(f"{job.checkpoint.name}{part or ''}")
        self._checkpoints.append(path)
        identity = self._data_digests | {
            "method": self._method_name,
            "recipe": digest_of(recipe.model_dump_json().encode()),
            "backbone": base_model.backbone.fingerprint,
            "pseudo-labels": digest_of(torch.stack([found.rows_N, found.labels_N]).numpy().tobytes()),
        }
        files = [job.images.files[row] for row in found.rows_N.tolist()]
        backbone = base_model.backbone
        views = Views(
            files,
            image_size=backbone.image_size,
            preprocess=backbone.preprocess,
            augmentation=recipe.augmentation,
            crop_scale_min=recipe.crop_scale_min,
            seed=recipe.seed,
            n_fixed=recipe.fixed_views,
        )
        with progress_bars(self._console) as progress:
            state = train_with_progress(
                Adapter(method, base_model, views, found.labels_N.tolist(), recipe, weak_features_NE),
                recipe,
                title=f"{self._method_name} on {job.domain}",
                progress=progress,
                checkpoint=CheckpointConfig(path, identity, job.checkpoint_every),
                tensorboard=job.tensorboard,
                selection=None,
                world=self._world,
            )
        self.losses += state.losses

    def metrics(self) -> dict[str, Any]:
        """Number of steps, first and last loss of all trainings; empty without one."""
        if not self.losses:
            return {}
        recent = self.losses[-20:]
        return {"steps": len(self.losses), "loss_first": self.losses[0], "loss_last": sum(recent) / len(recent)}

    def clean_up(self) -> None:
        """Delete the checkpoints."""
        for path in self._checkpoints:
            path.unlink(missing_ok=True)
