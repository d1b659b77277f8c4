"""Loads student and teacher where they shall run."""

import torch

from prompted_clip.backbone import Backbone, load_backbone
from training.errors import BackbonePairError


def load_pair(
    student: str,
    pretrained: str | None,
    teacher: str,
    teacher_pretrained: str | None,
    *,
    is_random: bool,
    device: str,
) -> tuple[Backbone, Backbone]:
    """Load both backbones.

    Args:
        student: open_clip name.
        pretrained: the student's weights.
        teacher: open_clip name.
        teacher_pretrained: the teacher's weights.
        is_random: random weights for both (seeds 0 and 1), for trying a pipeline out.
        device: `cpu`, `cuda` or `auto` (CUDA when there is one).

    Raises:
        WeightsError: a backbone cannot be loaded.
        BackbonePairError: CUDA was asked for where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        msg = "CUDA was asked for, but this machine's torch sees no GPU; use --device cpu."
        raise BackbonePairError(msg)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return (
        load_backbone(student, pretrained=pretrained, random_seed=0 if is_random else None, device=place),
        load_backbone(
            teacher,
            pretrained=teacher_pretrained,
            random_seed=1 if is_random else None,
            device=place,
        ),
    )
