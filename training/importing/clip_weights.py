"""CLIP's own weights inside a checkpoint: compared with the backbone's, then dropped.

Projects that train prompts inside CLIP's modules store the whole of it. The copies say which CLIP the prompts belong
to; on another one they mean nothing, though every shape may fit. Names are OpenAI's, which open_clip kept.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.internals import architecture_facts
from training.errors import ImportFormatError
from training.importing.layout import CheckpointTensors, printable

_IN_BACKBONE: Final = {"image_encoder.": "visual.", "text_encoder.": "", "logit_scale": "logit_scale"}
_PROMPTS: Final = "VPT"  # in the names of prompts that stand among CLIP's weights


@dataclass(frozen=True)
class Tolerance:
    """How far a copy may be from its original a: `relative·|a| + of_largest·max|a| + absolute`."""

    relative: float
    of_largest: float
    absolute: float

    def bound(self, original: Tensor) -> Tensor:
        """The largest difference allowed, elementwise."""
        sizes = original.abs()
        return self.relative * sizes + self.of_largest * sizes.max() + self.absolute


FLOAT16: Final = Tolerance(relative=2**-10, of_largest=0.0, absolute=2**-24)
"""Stored in float16: one unit in the last place, and its smallest number near zero."""

AVERAGED: Final = Tolerance(relative=0.0, of_largest=2**-7, absolute=0.0)
"""PromptSRC's Gaussian aggregation weighs and sums the frozen weights along with the prompts, in float16. With its
published schedules the sum strays by up to 0.3 % of a tensor's largest value; this is more than twice that."""


def check_clip_weights(
    tensors: CheckpointTensors, backbone: Backbone, tolerance: Tolerance, *, second_image_tower: str | None = None
) -> tuple[str, ...]:
    """Take all CLIP weights and compare them with the backbone's.

    Args:
        tensors: of the checkpoint, without the prompts that stand among CLIP's weights.
        backbone: what the prompts shall run on.
        tolerance: how far equal weights may be apart.
        second_image_tower: prefix of another copy of the image tower, where a project stores one.

    Returns:
        Notes for the person.

    Raises:
        ImportFormatError: names the first tensor that differs.
    """
    in_backbone = _IN_BACKBONE | ({second_image_tower: "visual."} if second_image_tower is not None else {})
    copies = tensors.take_raw(lambda name: name.startswith(tuple(in_backbone)) and _PROMPTS not in name)
    originals = backbone.clip.state_dict()
    for name, copy in copies.items():
        prefix = next(prefix for prefix in in_backbone if name.startswith(prefix))
        original = originals.get(in_backbone[prefix] + name.removeprefix(prefix))
        problem = "the backbone has no such tensor" if original is None else _difference(copy, original, tolerance)
        if problem is not None:
            msg = (
                f"The checkpoint was not trained on {backbone.arch} ({backbone.pretrained}): {printable(name)} "
                f"{list(copy.shape)}: {problem}. Name the CLIP it was trained on with --backbone and --pretrained."
            )
            raise ImportFormatError(msg)
    if not copies:
        return ("The checkpoint holds none of CLIP's weights, so nothing shows that it belongs to this backbone.",)
    return ()


def check_activation(backbone: Backbone) -> tuple[str, ...]:
    """A note where the backbone computes another activation than these projects' CLIP, which no weight shows."""
    if architecture_facts(backbone.clip)["quick_gelu"]:
        return ()
    return (
        f"These projects run CLIP with QuickGELU, {backbone.arch} ({backbone.pretrained}) computes GELU and answers "
        "differently; for OpenAI's weights use --pretrained openai, or --quick-gelu with a local file of them.",
    )


def _difference(copy: Tensor, original: Tensor, tolerance: Tolerance) -> str | None:
    """What tells the copy from the original, or None."""
    if copy.shape != original.shape:
        return f"the backbone's is {list(original.shape)}"
    original = original.detach().to("cpu", torch.float32)
    apart = (copy.float() - original).abs()
    bound = tolerance.bound(original)
    if bool((apart <= bound).all()):  # false for NaN too
        return None
    return (
        f"it differs from the backbone's by up to {float(apart.max()):.3g} in values of up to "
        f"{float(original.abs().max()):.3g}, where rounding explains {float(bound.max()):.1g}"
    )
