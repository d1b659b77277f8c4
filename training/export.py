"""Folds learned prompts into a bundle: everything image-free runs once, plain tensors remain."""

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
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
from prompted_clip.backbone import Backbone
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_classes


@torch.no_grad()
def fold_boosting(
    student: Backbone,
    *,
    domain: str,
    class_names: Sequence[str],
    template: str,
    image_boost: Tensor | None,
    text_boost: Tensor | None,
    provenance: Provenance,
) -> bytes:
    """A zero-shot bundle: boosting prompts and the text features they give.

    Args:
        student: the backbone the prompts were learned on.
        domain: name in the service.
        class_names: labels, also their text inside the template.
        template: text behind the prompts, with one `{}`.
        image_boost: [D, L, vision width] or None.
        text_boost: [D, L, text width] or None.
        provenance: how it was made.

    Returns:
        The bundle's bytes; prompts and features are float32.

    Raises:
        BundleInvalidError: a class name or the domain name breaks the format's rules.
    """
    features = encode_classes(student, class_names, [template], join_groups([text_boost]))
    tensors: dict[str, NDArray[Any]] = {"text.features": _array(features)}
    for name, group in (("image.boost", image_boost), ("text.boost", text_boost)):
        if group is not None:
            tensors[name] = _array(group)
    manifest = Manifest(
        format=1,
        domain=domain,
        backbone=student.spec(),
        classes=[ClassSpec(name=name, text=name) for name in class_names],
        templates=[template],
        logit_scale=student.logit_scale,
        stack=StackSpec(
            head="static",
            image=GroupsSpec(boost=_spec(image_boost), adapt=None),
            text=GroupsSpec(boost=_spec(text_boost), adapt=None),
        ),
        provenance=provenance,
    )
    return write_bundle(manifest, tensors)


def boost_provenance(
    *, recipe: Mapping[str, Any], data_digests: Mapping[str, str], teacher: Backbone, metrics: Mapping[str, Any]
) -> Provenance:
    """How a boosting bundle came to be, for the manifest."""
    return Provenance(
        method="caspl-boost",
        phase="boost",
        recipe=dict(recipe),
        data_digests=dict(data_digests),
        teacher={"arch": teacher.arch, "pretrained": teacher.pretrained, "fingerprint": teacher.fingerprint},
        seed=int(recipe["seed"]),
        metrics=dict(metrics),
        code_version=_code_version(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _spec(group: Tensor | None) -> GroupSpec | None:
    return GroupSpec(depth=group.shape[0], tokens=group.shape[1]) if group is not None else None


def _code_version() -> str:
    try:
        return version("caspl-serve")
    except PackageNotFoundError:
        return "unknown"
