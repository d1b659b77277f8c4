"""`caspl import` as a function: convert another project's checkpoint and write a bundle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prompt_store.manifest import check_domain
from prompted_clip.provenance import new_provenance
from training.adapting.text_context import Position
from training.export import export_bundle
from training.files import digest_of, write_atomic
from training.importing.checkpoint_file import Checkpoint, find_checkpoint, read_checkpoint
from training.importing.clip_weights import check_activation
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors
from training.importing.methods import IMPORTERS, detect_layout
from training.importing.text_features import read_text_features
from training.prompted_backbone import PromptedBackbone


@dataclass(frozen=True)
class ImportJob:
    """Inputs and outputs of one import.

    Attributes:
        checkpoint: a file, or the output folder of a Dassl run.
        method: a key of `IMPORTERS`.
        domain: domain name.
        class_names: K names.
        out: bundle to write.
        template: text after the prompts, with one `{}`; None for the method's own.
        position: of the class name in CoOp's context.
        text_features: file with the teacher's text features, for PromptKD.
    """

    checkpoint: Path
    method: str
    domain: str
    class_names: tuple[str, ...]
    out: Path
    template: str | None = None
    position: Position = "end"
    text_features: Path | None = None


def run_import(job: ImportJob, base_model: PromptedBackbone) -> dict[str, Any]:
    """Convert a checkpoint to a bundle.

    Args:
        job: inputs and outputs.
        base_model: the backbone to serve with, boosted if the prompts were trained on boosting prompts.

    Returns:
        Facts about checkpoint and bundle, and `notes` for the user.

    Raises:
        ImportFormatError: the checkpoint is not of this method, or not for this backbone or these classes.
        BundleInvalidError: invalid class name or domain name.
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """
    check_domain(job.domain)  # fail before the conversion
    importer = IMPORTERS[job.method]
    checkpoint = read_checkpoint(find_checkpoint(job.checkpoint, importer.layout.model_name))
    features = read_text_features(job.text_features, job.class_names) if job.text_features is not None else None
    converted = _convert(job, checkpoint, base_model, features)
    data_digests = {"checkpoint": checkpoint.digest}
    if base_model.boost_digest is not None:
        data_digests["boost"] = base_model.boost_digest
    if job.text_features is not None:
        data_digests["text_features"] = digest_of(job.text_features.read_bytes())
    data = export_bundle(
        base_model,
        converted.exported,
        domain=job.domain,
        class_names=job.class_names,
        template=converted.template,
        provenance=new_provenance(
            method=job.method,
            phase="adapt",
            recipe={"imported_from": checkpoint.path.name, "epoch": checkpoint.epoch, "position": job.position},
            data_digests=data_digests,
            metrics={},
        ),
    )
    write_atomic(job.out, data)
    return {
        "checkpoint": str(checkpoint.path),
        "epoch": checkpoint.epoch,
        "text": converted.template,
        "n_classes": len(job.class_names),
        "image_prompts": _layers_and_tokens(converted.exported.image_adapt),
        "text_prompts": _layers_and_tokens(converted.exported.text_adapt),
        "bundle": str(job.out),
        "digest": digest_of(data),
        "size_bytes": len(data),
        "notes": [*converted.notes, *check_activation(base_model.backbone)],
    }


def _convert(
    job: ImportJob, checkpoint: Checkpoint, base_model: PromptedBackbone, features: Tensor | None
) -> Converted:
    importer, found = IMPORTERS[job.method], detect_layout(checkpoint.tensors)
    tensors = CheckpointTensors(
        str(checkpoint.path), checkpoint.tensors, importer.layout, found if found is not importer.layout else None
    )
    return importer.convert(tensors, Target(base_model, job.class_names, job.template, job.position, features))


def _layers_and_tokens(prompts: Tensor | None) -> list[int] | None:
    return list(prompts.shape[-3:-1]) if prompts is not None else None
