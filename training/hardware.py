"""Device, precision, and loading student and teachers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from prompted_clip import device_errors, internals
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.errors import DeviceError
from prompted_clip.fastest_backend import gpu_dtype
from training.errors import BackbonePairError
from training.recipe import Recipe


@dataclass(frozen=True)
class BackboneSource:
    """The model of a student or teacher.

    Attributes:
        arch: open_clip model name.
        pretrained: its weights.
        preprocess_of: the tag whose preprocessing and activation a local weights file needs.
    """

    arch: str
    pretrained: str | None = None
    preprocess_of: str | None = None


def load_backbones(
    sources: Sequence[BackboneSource],
    *,
    is_random: bool,
    device: str,
    quick_gelu: bool,
    interpolate_positions: bool,
) -> list[Backbone]:
    """Load the backbones of a student and its teachers.

    Args:
        sources: the student's model, then those of the teachers.
        is_random: use random weights (seeds 0, 1, ...), for testing a pipeline.
        device: `cpu`, `cuda`, `cuda:<n>` or `auto` (CUDA if available).
        quick_gelu: see `prompted_clip.backbone.load_backbone`; for local files.
        interpolate_positions: likewise.

    Raises:
        WeightsError: a backbone cannot be loaded.
        BackbonePairError: CUDA is not available.
    """
    device = resolve_device(device)
    return [
        load_backbone(
            source.arch,
            pretrained=source.pretrained,
            random_seed=seed if is_random else None,
            device=device,
            quick_gelu=quick_gelu,
            preprocess_of=source.preprocess_of,
            interpolate_positions=interpolate_positions,
        )
        for seed, source in enumerate(sources)
    ]


def resolve_device(device: str) -> str:
    """`prompted_clip.device_errors.resolve_device`, with an error of this package.

    Raises:
        BackbonePairError: CUDA is not available, or torch has no code for the GPU.
    """
    try:
        return device_errors.resolve_device(device)
    except DeviceError as error:
        raise BackbonePairError(str(error)) from error


@contextmanager
def autocast(recipe: Recipe, backbone: Backbone) -> Iterator[None]:
    """Autocast a forward pass; prompts and optimizer state stay float32.

    `auto` is bfloat16 on GPUs with matrix units for it, otherwise float32: older GPUs emulate it. float16 is not
    supported: prompts trained in it become NaN on some GPUs. On CUDA the frozen weights are cast once, which gives
    the same numbers; autocast alone casts them at each use.
    """
    device = backbone.device
    is_fast = device.type == "cuda" and gpu_dtype(str(device)) == "bfloat16"
    is_bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and is_fast)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bfloat16):
        if not is_bfloat16 or device.type != "cuda":
            yield
            return
        if backbone.clip not in _BFLOAT16_WEIGHTS:
            weights = [_to_bfloat16(*weight) for weight in internals.matrix_weights(backbone.clip)]
            _BFLOAT16_WEIGHTS[backbone.clip] = weights
        replaced = [_replace(*weight) for weight in _BFLOAT16_WEIGHTS[backbone.clip]]
        try:
            yield
        finally:
            for weight in replaced:
                _replace(*weight)


_Weight = tuple[nn.Module, str, nn.Parameter]
_BFLOAT16_WEIGHTS: Final[WeakKeyDictionary[nn.Module, list[_Weight]]] = WeakKeyDictionary()
"""The weights of matrix products in bfloat16, by model."""


def _to_bfloat16(module: nn.Module, name: str, weight: nn.Parameter) -> _Weight:
    return module, name, nn.Parameter(weight.detach().bfloat16(), requires_grad=False)


def _replace(module: nn.Module, name: str, weight: nn.Parameter) -> _Weight:
    """Set a module's weight; returns the previous one."""
    previous = module._parameters[name]
    module._parameters[name] = weight
    return module, name, cast("nn.Parameter", previous)
