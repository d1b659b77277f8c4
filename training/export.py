"""Write trained prompts as a bundle of plain tensors, with text features computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_store.bundle import write_bundle
from prompt_store.manifest import (
    ClassSpec,
    GroupSpec,
    GroupsSpec,
    Manifest,
    Provenance,
    StackSpec,
)
from prompted_clip.prompts import join_groups
from prompted_clip.provenance import new_provenance
from prompted_clip.text import encode_classes
from training.adapting.method import ExportedPrompts
from training.files import digest_of, write_atomic
from training.parallel import World
from training.prompted_backbone import PromptedBackbone
from training.recipe import BoostRecipe
from training.teacher import Teacher


@torch.no_grad()
def export_bundle(
    base_model: PromptedBackbone,
    exported: ExportedPrompts,
    *,
    domain: str,
    class_names: Sequence[str],
    template: str,
    provenance: Provenance,
) -> bytes:
    """Build a bundle from a base model's boosting prompts and a method's exported prompts.

    Args:
        base_model: the model that was adapted; the bundle includes its boosting prompts, unless the method exports
            its own.
        exported: tensors of the trained method.
        domain: domain name.
        class_names: K labels, also inserted into `template`; the exported further classes follow them.
        template: text after the prompts, with one `{}`.
        provenance: how the prompts were trained.

    Returns:
        The bundle's bytes; all tensors are float32.

    Raises:
        BundleInvalidError: invalid class name or domain name.
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """
    base_model = _with_boosting_of(exported, base_model)
    class_names = [*class_names, *exported.further_classes]
    groups = {
        "image.boost": base_model.image_boost,
        "image.adapt": exported.image_adapt,
        "text.boost": base_model.text_boost,
        "text.adapt": exported.text_adapt,
    }
    tensors = {name: group for name, group in groups.items() if group is not None}
    if exported.meta_net is None:
        tensors["text.features"] = _text_features(base_model, exported, class_names, template)
    tensors |= _heads(exported)
    manifest = Manifest(
        format=1,
        domain=domain,
        backbone=base_model.backbone.spec(),
        classes=[ClassSpec(name=name, text=name) for name in class_names],
        templates=[template],
        logit_scale=base_model.logit_scale,
        stack=StackSpec(
            head="static" if exported.meta_net is None else "conditional",
            image=GroupsSpec(boost=_spec(base_model.image_boost), adapt=_spec(exported.image_adapt)),
            text=GroupsSpec(boost=_spec(base_model.text_boost), adapt=_spec(exported.text_adapt)),
            labels="own" if exported.is_closed_vocabulary else "any",
            head_share=exported.head.share if exported.head is not None else None,
            head_input="unit" if exported.head is not None and exported.head.reads_unit else "embedding",
        ),
        provenance=provenance,
    )
    return write_bundle(manifest, {name: _array(tensor) for name, tensor in tensors.items()})


def finish_run(data: bytes, out: Path, checkpoints: Sequence[Path], world: World) -> dict[str, Any]:
    """Write a training run's bundle and delete its checkpoints, in the main process.

    Returns:
        The bundle's path, digest and size in bytes, for the report.
    """
    if world.is_main:
        write_atomic(out, data)
        for checkpoint in checkpoints:
            checkpoint.unlink(missing_ok=True)
    return {"bundle": str(out), "digest": digest_of(data), "size_bytes": len(data)}


def boost_provenance(
    *, recipe: BoostRecipe, data_digests: Mapping[str, str], teachers: Sequence[Teacher], metrics: Mapping[str, Any]
) -> Provenance:
    """Provenance of a boosting bundle; of an adapting one if it was trained on boosting prompts.

    Several teachers are the list `teachers` of `teacher`.
    """
    facts = [t.backbone.identity | ({"bundle": t.digest} if t.digest else {}) for t in teachers]
    return new_provenance(
        method={"caspl": "caspl-boost", "promptkd": "promptkd"}[recipe.distillation],
        phase="adapt" if "boost" in data_digests else "boost",
        recipe=recipe.model_dump(),
        data_digests=data_digests,
        metrics=metrics,
        teacher=facts[0] if len(facts) == 1 else {"teachers": facts},
        seed=recipe.seed,
    )


def _with_boosting_of(exported: ExportedPrompts, base_model: PromptedBackbone) -> PromptedBackbone:
    """The base model with the boosting prompts that phase 2 trained further, if it did."""
    device = base_model.backbone.device
    image, text = (
        own if trained is None else trained.to(device)
        for own, trained in (
            (base_model.image_boost, exported.image_boost),
            (base_model.text_boost, exported.text_boost),
        )
    )
    return replace(base_model, image_boost=image, text_boost=text)


def _text_features(
    base_model: PromptedBackbone, exported: ExportedPrompts, class_names: Sequence[str], template: str
) -> Tensor:
    """The method's own text features [K, E] if it has any, else those computed from the prompts."""
    if exported.text_features_KE is not None:
        return exported.text_features_KE
    device = base_model.backbone.device
    adapt = exported.text_adapt.to(device) if exported.text_adapt is not None else None
    return encode_classes(base_model.backbone, class_names, [template], join_groups([adapt, base_model.text_boost]))


def _heads(exported: ExportedPrompts) -> dict[str, Tensor]:
    tensors = {f"conditional.{name}": tensor for name, tensor in (exported.meta_net or {}).items()}
    tensors |= {f"head.{name}": tensor for name, tensor in (exported.projector or {}).items()}
    if exported.head is not None:
        tensors |= {"head.weight": exported.head.weight_KE, "head.bias": exported.head.bias_K}
    return tensors


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _spec(group: Tensor | None) -> GroupSpec | None:
    return GroupSpec(depth=group.shape[-3], tokens=group.shape[-2]) if group is not None else None
