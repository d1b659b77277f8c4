"""`caspl adapt` as a function: train adapting prompts on labelled images and write a bundle."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from prompted_clip.provenance import new_provenance
from training.adapting.adapter import Adapter
from training.adapting.methods import METHODS
from training.data.class_list import check_class_names
from training.data.dataset import Dataset
from training.data.hold_out import describe_held_out
from training.data.views import Views
from training.export import export_bundle, finish_run
from training.files import digest_of
from training.loop import SINGLE_PROCESS, CheckpointConfig
from training.loop_progress import train_with_progress
from training.parallel import World
from training.progress import progress_bars
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe
from training.selection import Selection

_N_TRAIN_ACCURACY: Final = 512


@dataclass(frozen=True)
class AdaptJob:
    """Inputs and outputs of one adapting run.

    Attributes:
        domain: domain name.
        dataset: labelled images; training uses the whole `train` split, and `select` the `val` split.
        out: bundle to write.
        checkpoint: checkpoint of the run in progress; deleted once the bundle is written.
        checkpoint_every: steps between checkpoints.
        tensorboard: folder for TensorBoard event files, or None.
        select: write the step that is best on the `val` images, not the last one.
        keep_worse: write the bundle even if that step is worse than the base model.
    """

    domain: str
    dataset: Dataset
    out: Path
    checkpoint: Path
    checkpoint_every: int = 100
    tensorboard: Path | None = None
    select: bool = False
    keep_worse: bool = False


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
    views = Views.for_training([item.path for item in items], backbone, recipe)
    method = METHODS[method_name].build(base_model, job.dataset.class_names, recipe)
    adapter = Adapter(method, base_model, views, [item.label for item in items], recipe)
    data_digests = {"train": job.dataset.digest} | (
        {"boost": base_model.boost_digest} if base_model.boost_digest is not None else {}
    )
    identity = data_digests | {
        "method": method_name,
        "recipe": digest_of(recipe.model_dump_json().encode()),
        "backbone": backbone.fingerprint,
        "select": str(job.select),
    }
    selection = _selection(job, adapter, recipe, console) if job.select else None
    with progress_bars(console) as progress:
        state = train_with_progress(
            adapter,
            recipe,
            title=f"{method_name} on {job.domain}",
            progress=progress,
            checkpoint=CheckpointConfig(job.checkpoint, identity, job.checkpoint_every),
            tensorboard=job.tensorboard,
            selection=selection,
            world=world,
        )
    metrics: dict[str, Any] = {
        "n_images": len(items),
        "n_classes": len(job.dataset.class_names),
        **state.metrics(),
    }
    if selection is not None:
        selection.finish(adapter, recipe, state.step, job.checkpoint, keep_worse=job.keep_worse)
        metrics |= selection.metrics()
    metrics["train_accuracy"] = adapter.accuracy(_N_TRAIN_ACCURACY)
    data = export_bundle(
        base_model,
        method.fold(),
        domain=job.domain,
        class_names=job.dataset.class_names,
        template=method.template,
        provenance=new_provenance(
            method=method_name,
            phase="adapt",
            recipe=recipe.model_dump(),
            data_digests=data_digests,
            metrics=metrics,
            seed=recipe.seed,
        ),
    )
    written = finish_run(data, job.out, [job.checkpoint], world)
    return metrics | written | {"losses": state.losses}


def _selection(job: AdaptJob, adapter: Adapter, recipe: AdaptRecipe, console: Console) -> Selection:
    """Selection by accuracy on the `val` images; `before` is the base model with its own template."""
    base_model, items = adapter.base_model, job.dataset.split("val")
    backbone = base_model.backbone
    empty = set(range(len(job.dataset.class_names))) - {item.label for item in items}
    names = [job.dataset.class_names[label] for label in sorted(empty)]
    console.print(describe_held_out(len(items), adapter.n_images, names), markup=False, highlight=False, soft_wrap=True)
    views = Views.as_served([item.path for item in items], backbone.image_size, backbone.preprocess)
    held_out = Adapter(adapter.method, base_model, views, [item.label for item in items], recipe)
    text_KE = base_model.zero_shot_text(job.dataset.class_names, [base_model.template or job.dataset.template])
    return Selection(
        lambda: {"accuracy": held_out.accuracy(len(items))},
        {"accuracy": held_out.zero_shot_accuracy(text_KE)},
        len(items),
        partial(console.print, markup=False, highlight=False, soft_wrap=True),
    )
