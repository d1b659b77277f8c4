"""Bundles made from class names alone, with or without the boosting prompts of another bundle.

Legend: K classes, E joint width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_store.bundle import Bundle, write_bundle
from prompt_store.contents import FEATURES, head_kind
from prompt_store.manifest import BackboneSpec, ClassSpec, GroupsSpec, Manifest, StackSpec
from prompted_clip.errors import StackMismatchError
from prompted_clip.provenance import new_provenance
from prompted_clip.stack import PromptStack


def check_boosted(bundle: Bundle) -> None:
    """Check that a bundle has boosting prompts that work without its head.

    Raises:
        StackMismatchError: it has none, or its image features pass through a projector.
    """
    stack, domain = bundle.manifest.stack, bundle.manifest.domain
    if stack.image.boost is None and stack.text.boost is None:
        raise StackMismatchError(f"The bundle for domain {domain!r} has no boosting prompts.")
    if head_kind(stack, bundle.tensors) == "projector":
        msg = f"The boosting prompts of the bundle for domain {domain!r} work only with its projector."
        raise StackMismatchError(msg)


def text_stack(domain: str, templates: Sequence[str], logit_scale: float, boosted: PromptStack | None) -> PromptStack:
    """A stack without classes, to encode class names with: plain, or with the text prompts of boosting."""
    stack = PromptStack(domain, None, (), (), tuple(templates), logit_scale)
    return stack if boosted is None else replace(stack, text_boost=boosted.text_boost)


def zero_shot_bundle(
    domain: str,
    class_names: Sequence[str],
    text_KE: NDArray[Any],
    *,
    templates: Sequence[str],
    backbone: BackboneSpec,
    logit_scale: float,
    boosted: Bundle | None = None,
) -> bytes:
    """A bundle of class names, with the boosting prompts of another bundle if there is one.

    Args:
        domain: of the new bundle.
        class_names: K normalized names.
        text_KE: their unit features, by `templates` and the text prompts of boosting.
        templates: one or more, each with one `{}`.
        backbone: that encoded the text.
        logit_scale: multiplier of cosine similarities.
        boosted: its boosting prompts are copied.

    Raises:
        BundleInvalidError: an invalid domain, class name or template, or too many of them.
        StackMismatchError: as `check_boosted`.
    """
    tensors: dict[str, NDArray[Any]] = {FEATURES: np.ascontiguousarray(text_KE, dtype=np.float32)}
    image = text = GroupsSpec()
    recipe, digests = {}, {}
    if boosted is not None:
        check_boosted(boosted)
        tensors |= {name: array for name, array in boosted.tensors.items() if name.endswith(".boost")}
        image = GroupsSpec(boost=boosted.manifest.stack.image.boost)
        text = GroupsSpec(boost=boosted.manifest.stack.text.boost)
        recipe, digests = {"boosted_by": boosted.manifest.domain}, {"bundle": boosted.digest}
    manifest = Manifest(
        domain=domain,
        backbone=backbone,
        classes=[ClassSpec(name=name, text=name) for name in class_names],
        templates=list(templates),
        logit_scale=logit_scale,
        stack=StackSpec(head="static", image=image, text=text),
        provenance=new_provenance(
            method="zero-shot",
            phase="plain" if boosted is None else "boost",
            recipe=recipe,
            data_digests=digests,
            metrics={},
        ),
    )
    return write_bundle(manifest, tensors)
