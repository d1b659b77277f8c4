"""Compare CLIP weights inside a checkpoint with the backbone's, then drop them.

Projects that add prompts to CLIP's modules save the whole model. Its weights identify the backbone: prompts of another
backbone are useless even if all shapes match. Names are OpenAI's, which open_clip also uses.
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
_PROMPTS: Final = "VPT"  # marks prompts among CLIP's weights


@dataclass(frozen=True)
class Tolerance:
    """Allowed deviation of a copy from its original a: `relative·|a| + of_largest·max|a| + absolute`."""

    relative: float
    of_largest: float
    absolute: float

    def bound(self, original: Tensor) -> Tensor:
        """Elementwise allowed deviation."""
        sizes = original.abs()
        return self.relative * sizes + self.of_largest * sizes.max() + self.absolute


FLOAT16: Final = Tolerance(relative=2**-10, of_largest=0.0, absolute=2**-24)
"""float16 rounding: one unit in the last place, or the smallest subnormal near zero."""

AVERAGED: Final = Tolerance(relative=0.0, of_largest=2**-7, absolute=0.0)
"""PromptSRC's Gaussian aggregation also averages the frozen weights, in float16. With its published schedules, the
result deviates by up to 0.3 % of a tensor's largest value; this allows more than twice that."""


def check_clip_weights(
    tensors: CheckpointTensors, backbone: Backbone, tolerance: Tolerance, *, second_image_tower: str | None = None
) -> tuple[str, ...]:
    """Take all CLIP weights from `tensors` and compare them with the backbone's.

    Args:
        tensors: of the checkpoint, from which the prompts have been taken.
        backbone: the backbone to run the prompts on.
        tolerance: allowed deviation.
        second_image_tower: name prefix of a second copy of the image tower, if any.

    Returns:
        Notes for the user.

    Raises:
        ImportFormatError: a tensor differs; names the first one.
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
                f"{list(copy.shape)}: {problem}. Select the right CLIP with --backbone and --pretrained."
            )
            raise ImportFormatError(msg)
    if not copies:
        return ("The checkpoint contains no CLIP weights, so its backbone could not be verified.",)
    return ()


def check_activation(backbone: Backbone) -> tuple[str, ...]:
    """Note a backbone without QuickGELU, which all these projects use and which the weights do not reveal."""
    if architecture_facts(backbone.clip)["quick_gelu"]:
        return ()
    return (
        f"These projects use QuickGELU, but {backbone.arch} ({backbone.pretrained}) uses GELU, so predictions differ. "
        "For OpenAI's weights use --pretrained openai, or --quick-gelu with a local file.",
    )


def _difference(copy: Tensor, original: Tensor, tolerance: Tolerance) -> str | None:
    """How the copy differs from the original, or None."""
    if copy.shape != original.shape:
        return f"the backbone's shape is {list(original.shape)}"
    original = original.detach().to("cpu", torch.float32)
    deviation = (copy.float() - original).abs()
    bound = tolerance.bound(original)
    if bool((deviation <= bound).all()):  # false for NaN too
        return None
    return (
        f"it deviates from the backbone's by up to {float(deviation.max()):.3g}, in values of up to "
        f"{float(original.abs().max()):.3g}; rounding allows {float(bound.max()):.1g}"
    )
