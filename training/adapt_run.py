"""`caspl adapt` as a function: train adapting prompts on labelled images and write a bundle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training.adapting.adapter import Adapter
from training.adapting.methods import METHODS
from training.data.class_list import check_class_names
from training.data.dataset import Dataset
from training.data.views import Views
from training.export import adapt_provenance, export_bundle
from training.files import digest_of, write_atomic
from training.loop import SINGLE_PROCESS, CheckpointConfig
from training.parallel import World
from training.progress import progress_bars, train_with_progress
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe


@dataclass(frozen=True)
class AdaptJob:
    """Inputs and outputs of one adapting run.

    Attributes:
        domain: domain name.
        dataset: labelled images; training uses the whole `train` split.
        out: bundle to write.
        checkpoint: checkpoint of the run in progress; deleted once the bundle is written.
        checkpoint_every: steps between checkpoints.
        tensorboard: folder for TensorBoard event files, or None.
    """

    domain: str
    dataset: Dataset
    out: Path
    checkpoint: Path
    checkpoint_every: int = 100
    tensorboard: Path | None = None


def run_adapt(
    job: AdaptJob,
    method_name: str,
    recipe: AdaptRecipe,
    base_model: PromptedBackbone,
    console: Console,
    *,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train adapting prompts and write the bundle; an interrupted run resumes from its checkpoint.

    Args:
        job: inputs and outputs.
        method_name: a key of `METHODS`.
        recipe: the method's recipe.
        base_model: the backbone to serve with, boosted or plain.
        console: shows progress.
        world: the processes of this run; the main process writes files.

    Returns:
        Metrics and losses of the run, with the bundle's path and digest.

    Raises:
        TrainingError: any subclass; `job.out` is not written.
    """
    check_class_names(job.dataset.class_names, job.dataset.name)
    items = job.dataset.split("train")
    backbone = base_model.backbone
    views = Views(
        [item.path for item in items],
        image_size=backbone.image_size,
        preprocess=backbone.preprocess,
        augmentation=recipe.augmentation,
        crop_scale_min=recipe.crop_scale_min,
        seed=recipe.seed,
        n_fixed=recipe.fixed_views,
    )
    method = METHODS[method_name].build(base_model, job.dataset.class_names, recipe)
    adapter = Adapter(method, base_model, views, [item.label for item in items], recipe)
    data_digests = {"train": job.dataset.digest} | (
        {"boost": base_model.boost_digest} if base_model.boost_digest is not None else {}
    )
    identity = data_digests | {
        "method": method_name,
        "recipe": digest_of(recipe.model_dump_json().encode()),
        "backbone": backbone.fingerprint,
    }
    with progress_bars(console) as progress:
        state = train_with_progress(
            adapter,
            recipe,
            title=f"{method_name} on {job.domain}",
            progress=progress,
            checkpoint=CheckpointConfig(job.checkpoint, identity, job.checkpoint_every),
            tensorboard=job.tensorboard,
            world=world,
        )
    metrics = {
        "n_images": len(items),
        "n_classes": len(job.dataset.class_names),
        "steps": state.step,
        "loss_first": state.losses[0],
        "loss_last": state.recent_loss,
        "train_accuracy": _accuracy(adapter),
    }
    data = export_bundle(
        base_model,
        method.fold(),
        domain=job.domain,
        class_names=job.dataset.class_names,
        template=method.template,
        provenance=adapt_provenance(
            method=method_name, recipe=recipe.model_dump(), data_digests=data_digests, metrics=metrics
        ),
    )
    if world.is_main:
        write_atomic(job.out, data)
        job.checkpoint.unlink(missing_ok=True)
    return metrics | {
        "bundle": str(job.out),
        "digest": digest_of(data),
        "size_bytes": len(data),
        "losses": state.losses,
    }


@torch.no_grad()
def _accuracy(adapter: Adapter, n_images: int = 512, batch_rows: int = 32) -> float:
    """Training accuracy over the first `n_images` images, under the views of epoch 0."""
    n_correct = n_total = 0
    for start in range(0, min(n_images, adapter.n_images), batch_rows):
        indices = torch.arange(start, min(start + batch_rows, adapter.n_images))
        batch = adapter.batch(indices, 0)
        n_correct += int((adapter.method.logits(batch).argmax(1) == batch.labels_B).sum())
        n_total += len(indices)
    return n_correct / n_total
