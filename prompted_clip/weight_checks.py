"""Compares the tensors of a weights file with an architecture, before they are loaded into the model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import open_clip
import torch
from open_clip.model import CLIP, resize_pos_embed, resize_text_pos_embed
from torch import Tensor

from prompted_clip.errors import WeightsError
from prompted_clip.weight_files import OPENAI_FACTS, shortened

_IMAGE_POSITIONS: Final = "visual.positional_embedding"
_TEXT_POSITIONS: Final = "positional_embedding"
_DTYPES: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SCALES: Final = (2.0, 200.0)
"""Plausible logit scales s = exp(t): training starts at 14 and ends at 100, its upper bound."""


class _Size(NamedTuple):
    """Sizes of a CLIP, from its weights or its configuration."""

    patch: int
    grid: int
    layers: int
    width: int
    positions: int
    text_layers: int
    text_width: int
    embed_dim: int

    def __str__(self) -> str:
        return (
            f"image tower of {self.layers} layers, width {self.width}, {self.grid} x {self.grid} patches of "
            f"{self.patch} pixels; text tower of {self.text_layers} layers, width {self.text_width}, "
            f"{self.positions} positions; joint width {self.embed_dim}"
        )


def load_weights(
    tensors: dict[str, Tensor], clip: CLIP, *, arch: str, path: Path, interpolate_positions: bool = False
) -> list[str]:
    """Check tensors and load them into a model.

    Args:
        tensors: from `read_weights`.
        clip: a model of the architecture, on the CPU in float32.
        arch: its name.
        path: the file, for messages.
        interpolate_positions: resize positional embeddings of another image grid or text length.

    Returns:
        Changes that were made to the weights, one sentence each.

    Raises:
        WeightsError: names or shapes of another architecture, NaN, infinity, an all-zero matrix, or an implausible
            logit scale.
    """
    tensors = {name: value for name, value in tensors.items() if name not in OPENAI_FACTS}
    expected = clip.state_dict()
    _check_names(tensors, expected, arch, path)
    notes = [*_check_scale(tensors, expected["logit_scale"], path)]
    if interpolate_positions:
        notes += _interpolate(tensors, expected, clip, path)
    _check_shapes(tensors, expected, arch, path)
    unusable = [name for name, value in tensors.items() if not _is_usable(value)]
    if unusable:
        msg = f"{path} contains NaN, infinity or only zeros in {shortened(unusable)}. Download or save it again."
        raise WeightsError(msg)
    clip.load_state_dict(tensors)
    return notes


def _check_names(tensors: dict[str, Tensor], expected: dict[str, Tensor], arch: str, path: Path) -> None:
    missing, unused = [*(expected.keys() - tensors.keys())], [*(tensors.keys() - expected.keys())]
    if not missing and not unused:
        return
    if any(name.startswith(("text_model.", "vision_model.")) for name in tensors):
        msg = (
            f"{path} has the layout of Hugging Face transformers, not open_clip's. Pass open_clip's tag or file of the "
            "same weights; for openai/clip-vit-* use --pretrained openai."
        )
        raise WeightsError(msg)
    if "text.features" in tensors or any(name.endswith((".boost", ".adapt")) for name in tensors):
        msg = f"{path} is a bundle of prompts, not weights of a backbone. Pass the weights it was trained on."
        raise WeightsError(msg)
    _check_heads(tensors, path)
    problems = [f"{len(missing)} tensors are missing: {shortened(sorted(missing))}"] * bool(missing)
    problems += [f"{len(unused)} are unknown: {shortened(sorted(unused))}"] * bool(unused)
    msg = f"{path} does not fit {arch}: {'; '.join(problems)}.{_advice(tensors, arch)}"
    raise WeightsError(msg)


def _check_heads(tensors: dict[str, Tensor], path: Path) -> None:
    """Recognise pruned attention: queries, keys and values narrower than the layer's input."""
    for name, value in tensors.items():
        if name.endswith("attn.in_proj_weight") and value.ndim == 2 and len(value) < 3 * value.shape[1]:
            msg = (
                f"{path} has fewer attention heads in {name.removesuffix('.attn.in_proj_weight')} than its width of "
                f"{value.shape[1]} has, as TinyCLIP's models with automatic weight inheritance do. Such towers are not "
                "supported. Pass a model with manual inheritance, such as TinyCLIP-ViT-39M-16-Text-19M."
            )
            raise WeightsError(msg)


def _check_shapes(tensors: dict[str, Tensor], expected: dict[str, Tensor], arch: str, path: Path) -> None:
    unknown = [f"{name} is {value.dtype}" for name, value in tensors.items() if value.dtype not in _DTYPES]
    if unknown:
        msg = f"{path} is quantised: {shortened(unknown)}. Pass weights in float32, float16 or bfloat16."
        raise WeightsError(msg)
    wrong = [name for name, value in expected.items() if tensors[name].shape != value.shape]
    if not wrong:
        return
    _check_heads(tensors, path)
    shapes = shortened(f"{name} is {list(tensors[name].shape)}, not {list(expected[name].shape)}" for name in wrong)
    msg = f"{path} does not fit {arch}: {shapes}."
    found, needed = _size_of(tensors), _size_of(expected)
    if found and needed:
        msg += f" The file: {found}. {arch}: {needed}."
    msg += _advice(tensors, arch)
    if {*wrong} <= {_IMAGE_POSITIONS, _TEXT_POSITIONS}:
        msg += " To resize the positional embeddings, which changes the model, pass --interpolate-positions."
    raise WeightsError(msg)


def _check_scale(tensors: dict[str, Tensor], expected: Tensor, path: Path) -> Iterator[str]:
    """Reshape the logit scale to a scalar, and replace a scale s stored as it is by t = ln s."""
    stored = tensors["logit_scale"]
    if stored.numel() != 1:
        return  # reported with the other shapes
    low, high = _SCALES
    value = float(stored)
    if not math.log(low) <= value <= math.log(high):
        if not math.log(high) < value <= high:
            msg = (
                f"{path}: logit_scale is {value:.4g}, expected the natural logarithm of the scale, between "
                f"{math.log(low):.2f} and {math.log(high):.2f} (CLIP's is 4.6052 = ln 100). Correct it in the file."
            )
            raise WeightsError(msg)
        yield (
            f"{path.name} stores the logit scale {value:.4g} itself instead of its natural logarithm; "
            f"using {math.log(value):.4f}."
        )
        value = math.log(value)
    tensors["logit_scale"] = torch.full(expected.shape, value, dtype=torch.float32)


def _interpolate(tensors: dict[str, Tensor], expected: dict[str, Tensor], clip: CLIP, path: Path) -> Iterator[str]:
    resizing = {
        _IMAGE_POSITIONS: ("image", resize_pos_embed),
        _TEXT_POSITIONS: ("text", resize_text_pos_embed),
    }
    for name, (tower, resize) in resizing.items():
        found, needed = tensors[name], expected[name]
        if found.ndim != needed.ndim or found.shape[1:] != needed.shape[1:] or found.shape == needed.shape:
            continue
        tensors[name] = found.float()
        resize(tensors, clip)
        yield f"{path.name}: interpolated {len(found)} {tower} positions to {len(needed)}."


def _is_usable(value: Tensor) -> bool:
    """Finite, and no matrix of zeros, as in an incompletely written file."""
    return bool(value.isfinite().all()) and (value.ndim < 2 or bool(value.any()))


def _advice(tensors: dict[str, Tensor], arch: str) -> str:
    """A sentence with the architectures of the tensors' sizes, after a space; empty if there are none."""
    found = _size_of(tensors)
    if found is None:
        return ""
    known = [name for name in open_clip.list_models() if name != arch and not name.endswith("-quickgelu")]
    names = [name for name in known if _size_of_config(name) == found]
    return f" It has the size of {shortened(names, 3)}: pass that as --backbone." if names else ""


def _size_of(tensors: dict[str, Tensor]) -> _Size | None:
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        grid = math.isqrt(len(tensors[_IMAGE_POSITIONS]) - 1)
        text = (len(tensors[_TEXT_POSITIONS]), _layers(tensors, "transformer"), tensors[_TEXT_POSITIONS].shape[1])
        return _Size(
            patch, grid, _layers(tensors, "visual.transformer"), width, *text, tensors["text_projection"].shape[1]
        )
    except (KeyError, ValueError, IndexError):
        return None


def _size_of_config(arch: str) -> _Size | None:
    config: dict[str, Any] = open_clip.get_model_config(arch)
    image, text = config["vision_cfg"], config["text_cfg"]
    try:
        image_tower = (image["patch_size"], image["image_size"] // image["patch_size"], image["layers"], image["width"])
        return _Size(*image_tower, text["context_length"], text["layers"], text["width"], config["embed_dim"])
    except (KeyError, TypeError):
        return None


def _layers(tensors: dict[str, Tensor], tower: str) -> int:
    start = f"{tower}.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in tensors if name.startswith(start)})
