"""`caspl fit` as a function: fit a few-shot head to labelled images and write a bundle.

Legend: N labelled and U unlabelled images, K classes, E joint width.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from prompt_store.bundle import Bundle, read_bundle
from prompted_clip.features import Floats, text_logits
from prompted_clip.fit_report import AUTO, fit_and_report
from prompted_clip.fitted_bundle import FitClasses, check_replaceable, write_fit
from prompted_clip.model import PromptedClip
from prompted_clip.provenance import new_provenance
from prompted_clip.semi_supervised import UnlabelledImages
from prompted_clip.stack import PromptStack
from training.adapting.method import ExportedPrompts
from training.data.class_list import check_class_names
from training.data.dataset import Dataset
from training.data.images import ImageFolder
from training.data.views import Views
from training.export import export_bundle
from training.files import digest_of, write_atomic
from training.progress import progress_bars
from training.prompted_backbone import PromptedBackbone

BATCH_ROWS: Final = 64


@dataclass(frozen=True)
class FitJob:
    """Inputs and outputs of one fit.

    Attributes:
        bundle: prompts and classes; class names of the data set that it lacks are added.
        dataset: labelled images; the `train` split is used.
        out: bundle to write.
        method: a key of `FEW_SHOT_METHODS`, or `auto` for the best of `AUTO_METHODS`.
        unlabelled: further images; adds the candidate `gda-unlabelled`.
    """

    bundle: Bundle
    dataset: Dataset
    out: Path
    method: str = AUTO
    unlabelled: ImageFolder | None = None


def run_fit(job: FitJob, model: PromptedClip, console: Console) -> dict[str, Any]:
    """Fit a few-shot head and write the bundle; prompts and existing text features stay as they are.

    Args:
        job: inputs and outputs.
        model: with the backbone that the bundle was made for.
        console: shows progress.

    Returns:
        The report as JSON values, each suspect with its file, and the bundle's path, digest and size.

    Raises:
        StackMismatchError: the bundle is for another backbone, has a head that cannot be replaced, or cannot encode new
            classes.
        TrainingError: no train images, or invalid class names.
    """
    check_replaceable(job.bundle)
    check_class_names(job.dataset.class_names, job.dataset.name)
    items = job.dataset.split("train")
    stack = model.load_stack(job.bundle)
    classes = FitClasses.of_bundle(job.bundle)
    if new := classes.missing(job.dataset.class_names):
        encoded = model.with_labels(stack, new).text_features
        assert encoded is not None  # noqa: S101  a static head has text features
        classes = classes.extended(new, encoded.float().numpy())
    features_NE = image_features(model, stack, [item.path for item in items], console)
    labels_N = classes.indices(job.dataset.class_names)[[item.label for item in items]]
    unlabelled, digests = None, {"train": job.dataset.digest}
    if job.unlabelled is not None:
        features_UE = image_features(model, stack, job.unlabelled.files, console)
        unlabelled = UnlabelledImages(features_UE, text_logits(features_UE, classes.text_KE, stack.logit_scale))
        digests["unlabelled"] = job.unlabelled.digest
    text_logits_NK = text_logits(features_NE, classes.text_KE, stack.logit_scale)
    fit, report = fit_and_report(features_NE, labels_N, text_logits_NK, classes.names, job.method, unlabelled)
    data = write_fit(job.bundle, classes, fit.term, report, method=job.method, data_digests=digests)
    write_atomic(job.out, data)
    suspects = [asdict(one) | {"file": str(items[one.index].path)} for one in report.suspects]
    facts = {"bundle": str(job.out), "digest": digest_of(data), "size_bytes": len(data)}
    return asdict(report) | {"suspects": suspects} | facts


def zero_shot_bundle(base_model: PromptedBackbone, dataset: Dataset, domain: str) -> Bundle:
    """A bundle of a base model's boosting prompts, if any, and a data set's classes.

    The text is the template of boosting; without boosting prompts, the data set's hand-written one.

    Raises:
        BundleInvalidError, TextTooLongError: as `export_bundle`.
    """
    data = export_bundle(
        base_model,
        ExportedPrompts(),
        domain=domain,
        class_names=dataset.class_names,
        template=base_model.template or dataset.template,
        provenance=new_provenance(method="zero-shot", phase="adapt", recipe={}, data_digests={}, metrics={}),
    )
    return read_bundle(data)


@torch.inference_mode()
def image_features(model: PromptedClip, stack: PromptStack, files: Sequence[Path], console: Console) -> Floats:
    """Unit-norm features of image files under a stack's prompts, preprocessed as in the service: [N, E]."""
    views = Views.as_served(files, model.backbone.image_size, model.backbone.preprocess)
    parts = []
    with progress_bars(console) as progress:
        task = progress.add_task(f"encoding images of {stack.domain}", total=len(files), note="")
        for start in range(0, len(files), BATCH_ROWS):
            rows = range(start, min(start + BATCH_ROWS, len(files)))
            images = model.encode_images(views.load(rows, 0), [stack] * len(rows))
            parts.append(images.unit_BE.cpu().numpy().astype(np.float64))
            progress.advance(task, len(rows))
    return np.concatenate(parts)
