"""Device, precision, and loading student and teacher."""

from contextlib import AbstractContextManager
from typing import Unpack

import torch

from prompted_clip import device_errors
from prompted_clip.backbone import Backbone, WeightOptions, load_backbone
from prompted_clip.errors import DeviceError
from prompted_clip.precision import fastest_dtype
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
    teacher_preprocess_of: str | None = None,
    **options: Unpack[WeightOptions],
) -> tuple[Backbone, Backbone]:
    """Load the student's and the teacher's backbone.

    Args:
        student: open_clip model name.
        pretrained: the student's weights.
        teacher: open_clip model name.
        teacher_pretrained: the teacher's weights.
        is_random: use random weights (seeds 0 and 1), for testing a pipeline.
        device: `cpu`, `cuda`, `cuda:<n>` or `auto` (CUDA if available).
        teacher_preprocess_of: the teacher's `preprocess_of`.
        options: for local files; `preprocess_of` is the student's.

    Raises:
        WeightsError: a backbone cannot be loaded.
        BackbonePairError: CUDA is not available.
    """
    device = resolve_device(device)
    teacher_options: WeightOptions = {**options, "preprocess_of": teacher_preprocess_of}
    return (
        load_backbone(
            student,
            pretrained=pretrained,
            random_seed=0 if is_random else None,
            device=device,
            **options,
        ),
        load_backbone(
            teacher,
            pretrained=teacher_pretrained,
            random_seed=1 if is_random else None,
            device=device,
            **teacher_options,
        ),
    )


def resolve_device(device: str) -> str:
    """As `prompted_clip.device_errors.resolve_device`, with an error of training.

    Raises:
        BackbonePairError: CUDA is not available, or torch has no code for the GPU.
    """
    try:
        return device_errors.resolve_device(device)
    except DeviceError as error:
        raise BackbonePairError(str(error)) from error


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """Autocast context of a forward pass; prompts and optimizer state stay float32.

    `auto` is bfloat16 on GPUs with matrix units for it, otherwise float32: older GPUs emulate it. float16 is not
    supported: prompts trained in it become NaN on some GPUs.
    """
    is_fast = device.type == "cuda" and fastest_dtype("", str(device)) == torch.bfloat16
    is_bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and is_fast)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bfloat16)
