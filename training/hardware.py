"""Where training runs: device, precision, and the backbones put there."""

from contextlib import AbstractContextManager

import torch

from prompted_clip.backbone import Backbone, load_backbone
from training.errors import BackbonePairError
from training.recipe import Recipe


def load_backbones(
    student: str,
    pretrained: str | None,
    teacher: str,
    teacher_pretrained: str | None,
    *,
    is_random: bool,
    device: str,
    quick_gelu: bool = False,
) -> tuple[Backbone, Backbone]:
    """Load both backbones.

    Args:
        student: open_clip name.
        pretrained: the student's weights.
        teacher: open_clip name.
        teacher_pretrained: the teacher's weights.
        is_random: random weights for both (seeds 0 and 1), for trying a pipeline out.
        quick_gelu: for local files of OpenAI's weights; tags that need it get it without asking.
        device: `cpu`, `cuda`, `cuda:<n>` or `auto` (CUDA when there is one).

    Raises:
        WeightsError: a backbone cannot be loaded.
        BackbonePairError: CUDA was asked for where there is none.
    """
    place = resolve_device(device)
    return (
        load_backbone(
            student,
            pretrained=pretrained,
            random_seed=0 if is_random else None,
            quick_gelu=quick_gelu,
            device=place,
        ),
        load_backbone(
            teacher,
            pretrained=teacher_pretrained,
            random_seed=1 if is_random else None,
            quick_gelu=quick_gelu,
            device=place,
        ),
    )


def resolve_device(device: str) -> str:
    """What `cpu`, `cuda`, `cuda:<n>` or `auto` means on this machine.

    Raises:
        BackbonePairError: CUDA was asked for where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not has_cuda:
        msg = "CUDA was asked for, but this machine's torch sees no GPU; use --device cpu."
        raise BackbonePairError(msg)
    return ("cuda" if has_cuda else "cpu") if device == "auto" else device


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """The precision of a forward: prompts and optimizer stay float32, matrix products may be bfloat16.

    float16 is not offered: prompts trained in it become NaN on some GPUs.
    """
    is_bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bfloat16)
