"""Read a teacher's text features from a bundle, or from a safetensors or PyTorch file with one tensor.

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
        path: a bundle, or a `.safetensors`, `.pt` or `.pth` file with one tensor.
        class_names: K names; a bundle must have the same names in the same order.

    Returns:
        Features [K, F] in the stored dtype.

    Raises:
        ImportFormatError: missing file, not exactly one tensor, or a bundle for other classes.
        BundleInvalidError: invalid bundle.
    """
    if not path.is_file():
        msg = f"The text features {path} do not exist."
        raise ImportFormatError(msg)
    loaded = _read_safetensors(path, class_names) if path.suffix == ".safetensors" else load_weights_only(path)
    values = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
    if len(values) != 1 or not isinstance(values[0], Tensor) or not values[0].is_floating_point():
        found = f"{len(values)} entries" if len(values) != 1 else type(values[0]).__name__
        msg = f"{path}: expected a single tensor of text features [{len(class_names)}, width], found {found}."
        raise ImportFormatError(msg)
    return values[0].detach()


def _read_safetensors(path: Path, class_names: Sequence[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if MANIFEST_KEY not in (file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        msg = f"{path} cannot be read as a safetensors file: {error}"
        raise ImportFormatError(msg) from error
    bundle = read_bundle(path.read_bytes())
    names = [spec.name for spec in bundle.manifest.classes]
    if names != list(class_names):
        index = next((i for i, pair in enumerate(zip(names, class_names, strict=False)) if pair[0] != pair[1]), None)
        difference = (
            f"its class {index + 1} is {names[index]!r}" if index is not None else f"it has {len(names)} classes"
        )
        msg = f"The bundle {path} has other classes: {difference}. Pass the same names in the same order."
        raise ImportFormatError(msg)
    features = bundle.tensors.get("text.features")
    if features is None:
        msg = f"The bundle {path} has a conditional head; PromptKD needs fixed text features."
        raise ImportFormatError(msg)
    return {"text.features": torch.from_numpy(features)}
