"""Loads student and teacher where they shall run."""

import torch

from prompted_clip.backbone import Backbone, load_backbone
from training.errors import BackbonePairError


def load_pair(
    student: str,
    pretrained: str | None,
    teacher: str,
    teacher_pretrained: str | None,
    random_seed: int | None,
    device: str,
) -> tuple[Backbone, Backbone]:
    """Load both backbones.

    Args:
        student: open_clip name.
        pretrained: the student's weights.
        teacher: open_clip name.
        teacher_pretrained: the teacher's weights.
        random_seed: random weights for both, for trying a pipeline out.
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
        load_backbone(student, pretrained=pretrained, random_seed=random_seed, device=place),
        load_backbone(
            teacher,
            pretrained=teacher_pretrained,
            random_seed=None if random_seed is None else random_seed + 1,
            device=place,
        ),
    )
