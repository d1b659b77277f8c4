"""Bundles with a few-shot head: which bundles can get one, added classes, and the tensors and calibration of a fit.

Legend: K classes, E joint width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_store.bundle import Bundle
from prompt_store.class_names import comparison_key
from prompt_store.contents import FEATURES, head_kind
from prompt_store.manifest import Calibration, ClassSpec, Manifest
from prompted_clip.errors import StackMismatchError
from prompted_clip.fit import FewShotFit
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack


def check_replaceable(bundle: Bundle) -> None:
    """Check that a bundle's logits are those of its text features, or those of an earlier fit.

    Raises:
        StackMismatchError: they are not.
    """
    stack = bundle.manifest.stack
    kind = head_kind(stack, bundle.tensors)
    if kind == "plain" or (kind == "class" and stack.head_input == "unit"):
        return
    made = bundle.manifest.provenance.method
    msg = (
        f"The bundle for domain {bundle.manifest.domain!r}, made by {made}, has a {kind} head, which a few-shot head "
        "cannot extend. Use a bundle with text features only, such as one from `caspl boost`."
    )
    raise StackMismatchError(msg)


def add_classes(
    bundle: Bundle, names: Sequence[str], model: PromptedClip, stack: PromptStack
) -> tuple[list[ClassSpec], NDArray[Any]]:
    """The bundle's classes and those of `names` that it lacks, with their text features [K, E].

    Raises:
        StackMismatchError, TextTooLongError: as `PromptedClip.with_labels`.
    """
    classes, text_KE = list(bundle.manifest.classes), bundle.tensors[FEATURES]
    known = {comparison_key(spec.name) for spec in classes}
    new = [name for name in names if comparison_key(name) not in known]
    if not new:
        return classes, text_KE
    encoded = model.with_labels(stack, new).text_features
    assert encoded is not None  # noqa: S101  a static head has text features
    added_KE = encoded.float().numpy().astype(text_KE.dtype)
    return [*classes, *(ClassSpec(name=name, text=name) for name in new)], np.concatenate([text_KE, added_KE])


def fitted_bundle(
    bundle: Bundle, classes: Sequence[ClassSpec], text_KE: NDArray[Any], fit: FewShotFit
) -> tuple[Manifest, Mapping[str, NDArray[Any]]]:
    """Manifest and tensors of a bundle with a fit's head and calibration, with the provenance of the given bundle.

    (z + alpha (W f + b)) / T as the format has it: with a head share of 1/2, weight alpha W and bias alpha b, the
    logits are half of the sum, and T/2 is the temperature.
    """
    tensors = {name: array for name, array in bundle.tensors.items() if not name.startswith("head.")}
    tensors[FEATURES] = text_KE
    stack: dict[str, Any] = {"head_share": None, "head_input": "embedding"}
    temperature = fit.temperature
    if fit.alpha:
        tensors["head.weight"] = (fit.alpha * fit.term.weight_KE).astype(np.float32)
        tensors["head.bias"] = (fit.alpha * fit.term.bias_K).astype(np.float32)
        stack, temperature = {"head_share": 0.5, "head_input": "unit"}, temperature / 2
    changes = {
        "classes": list(classes),
        "stack": bundle.manifest.stack.model_copy(update=stack),
        "calibration": Calibration(temperature=temperature, abstain=fit.thresholds()),
    }
    return bundle.manifest.model_copy(update=changes), tensors
