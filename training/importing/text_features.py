"""A teacher's text features, from the file a person names.

Knows bundles (their `text.features`, whose class names have to agree), and any safetensors or PyTorch file with one
tensor. Does not know what the features are for.

Legend: K classes, F width of the features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prompt_store.bundle import MANIFEST_KEY, read_bundle
from training.errors import ImportFormatError
from training.importing.checkpoint_file import load_weights_only


def read_text_features(path: Path, class_names: Sequence[str]) -> Tensor:
    """Read text features, one row per class.

    Args:
        path: a bundle, or a `.safetensors`, `.pt` or `.pth` file that holds one tensor.
        class_names: K names; those of a bundle have to be the same in the same order.

    Returns:
        Features as stored.

    Raises:
        ImportFormatError: no such file, no single tensor in it, or a bundle for other classes.
        BundleInvalidError: a damaged bundle.
    """
    if not path.is_file():
        msg = f"No file of text features at {path}."
        raise ImportFormatError(msg)
    loaded = _read_safetensors(path, class_names) if path.suffix == ".safetensors" else load_weights_only(path)
    values = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
    if len(values) != 1 or not isinstance(values[0], Tensor) or not values[0].is_floating_point():
        found = f"{len(values)} entries" if len(values) != 1 else type(values[0]).__name__
        msg = f"{path}: expected one tensor of text features [{len(class_names)}, width], found {found}; save it alone."
        raise ImportFormatError(msg)
    return values[0].detach()


def _read_safetensors(path: Path, class_names: Sequence[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if MANIFEST_KEY not in (file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        msg = f"{path} cannot be read as a safetensors file: {error}"
        raise ImportFormatError(msg) from error
    bundle = read_bundle(path.read_bytes())
    names = [spec.name for spec in bundle.manifest.classes]
    if names != list(class_names):
        index = next((i for i, pair in enumerate(zip(names, class_names, strict=False)) if pair[0] != pair[1]), None)
        at = f"class {index + 1} is {names[index]!r} there" if index is not None else f"it has {len(names)} classes"
        msg = f"The bundle {path} is for other classes than this import: {at}; give the same names in the same order."
        raise ImportFormatError(msg)
    features = bundle.tensors.get("text.features")
    if features is None:
        msg = f"The bundle {path} has no text features: it makes them for each image. PromptKD needs fixed ones."
        raise ImportFormatError(msg)
    return {"text.features": torch.from_numpy(features)}
