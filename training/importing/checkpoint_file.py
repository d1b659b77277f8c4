"""Find and read checkpoint files of other projects without executing code from them.

Supports Dassl's files (`<run>/<model name>/model.pth.tar-<epoch>`, `model-best.pth.tar`), bare state dicts and
safetensors.

PyTorch files are pickles, which can execute code when loaded. They are loaded with `weights_only=True`, which builds
only tensors and plain containers. Dassl also pickles its learning-rate scheduler; placeholder classes replace such
objects and discard their state.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from prompted_clip import weight_files
from prompted_clip.errors import WeightsError
from training.data.dataset import shorten
from training.errors import ImportFormatError
from training.importing.layout import printable

MAX_CHECKPOINT_BYTES: Final = 8 * 2**30
"""More than twice the largest file of these projects: PromptSRC on ViT-L/14 in float32, with two image towers: 3 GB."""

_EPOCH_FILE: Final = re.compile(r"model\.pth\.tar-(\d+)")
_BEST_FILE: Final = "model-best.pth.tar"
_SCHEDULER_CLASSES: Final = (
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "torch.optim.lr_scheduler.MultiStepLR",
    "torch.optim.lr_scheduler.StepLR",
    "torch.optim.adam.Adam",
    "torch.optim.adamw.AdamW",
    "torch.optim.rmsprop.RMSprop",
    "torch.optim.sgd.SGD",
    "dassl.optim.radam.RAdam",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors of a checkpoint file.

    Attributes:
        path: the file.
        digest: `sha256:<hex>` of its bytes.
        epoch: epoch of the checkpoint, or None if the file does not contain it.
        tensors: by name, on the CPU, in the stored dtype; the `module.` prefix of data-parallel runs is stripped.
    """

    path: Path
    digest: str
    epoch: int | None
    tensors: dict[str, Tensor]


def find_checkpoint(path: Path, model_name: str) -> Path:
    """Return `path` itself if it is a file, else the latest checkpoint of a Dassl run.

    Args:
        path: a checkpoint file, a run's output folder, or the model's folder inside it.
        model_name: name of the model's folder.

    Returns:
        The file with the highest epoch, or `model-best.pth.tar` if no file name has an epoch.

    Raises:
        ImportFormatError: no checkpoint found.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        msg = f"{path} does not exist; pass a checkpoint file or the output folder of a Dassl run."
        raise ImportFormatError(msg)
    for folder in (path / model_name, path):
        files = {file.name: file for file in folder.iterdir() if file.is_file()} if folder.is_dir() else {}
        epochs = {int(match[1]): name for name in files if (match := _EPOCH_FILE.fullmatch(name))}
        if epochs:
            return files[epochs[max(epochs)]]
        if _BEST_FILE in files:
            return files[_BEST_FILE]
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    msg = (
        f"No checkpoint in {path}: expected {model_name}/model.pth.tar-<epoch> or {model_name}/{_BEST_FILE}, "
        f"found {shorten(map(printable, entries)) or 'an empty folder'}. Pass the checkpoint file itself."
    )
    raise ImportFormatError(msg)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's tensors.

    Args:
        path: a `.safetensors` file, or a PyTorch file with a state dict, bare or under `state_dict`.

    Raises:
        ImportFormatError: too large, unreadable, contains objects other than tensors, or a tensor that is not dense.
    """
    n_bytes = path.stat().st_size
    if n_bytes > MAX_CHECKPOINT_BYTES:
        msg = f"{path} has {n_bytes} bytes; the limit is {MAX_CHECKPOINT_BYTES}. Save and import only its state_dict."
        raise ImportFormatError(msg)
    state, epoch = _state_dict(path, _load(path))
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = name.removeprefix("module.")
        if plain in tensors:
            msg = f"{path} contains {plain!r} twice, with and without the prefix 'module.'; remove one."
            raise ImportFormatError(msg)
        tensors[plain] = _check_tensor(path, plain, value, n_bytes)
    return Checkpoint(path, _digest_file(path), epoch, tensors)


class _Placeholder:
    """Replaces a pickled object; discards its arguments and state."""

    def __init__(self, *stored: object) -> None:
        del stored

    def __setstate__(self, state: object) -> None:
        del state


def _empty_dict(*factory: object) -> dict[object, object]:
    """Replaces a pickled `defaultdict`: an empty dict without a default factory."""
    del factory
    return {}


def _named(path: str, placeholder: Any) -> Any:  # noqa: ANN401 - any class or function
    """Give `placeholder` the qualified name `path`, by which weights-only loading finds it; nothing is imported."""
    placeholder.__module__, _, placeholder.__qualname__ = path.rpartition(".")
    placeholder.__name__ = placeholder.__qualname__
    return placeholder


_PLACEHOLDERS: Final = [
    *(_named(path, type("Placeholder", (_Placeholder,), {})) for path in _SCHEDULER_CLASSES),
    _named("builtins.dict", type("Placeholder", (_Placeholder,), {})),  # default factory of a defaultdict
    _named("collections.defaultdict", _empty_dict),
]


def load_weights_only(path: Path) -> object:
    """Load a PyTorch file without executing code from it.

    Raises:
        ImportFormatError: the file is damaged, compressed, or contains objects other than tensors and containers.
    """
    try:
        return weight_files.load_weights_only(path, _PLACEHOLDERS)
    except WeightsError as error:
        raise ImportFormatError(str(error)) from error


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return weight_files.read_safetensors(path)
    except WeightsError as error:
        raise ImportFormatError(str(error)) from error
    return load_weights_only(path)


def _state_dict(path: Path, loaded: object) -> tuple[Mapping[str, object], int | None]:
    epoch = None
    if isinstance(loaded, Mapping) and "state_dict" in loaded:
        epoch = loaded.get("epoch")
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(name, str) for name in loaded):
        names = (
            shorten(printable(str(name)) for name in loaded) if isinstance(loaded, Mapping) else type(loaded).__name__
        )
        msg = (
            f"{path} contains no state dict: expected tensors by name, or a dict with 'state_dict', found "
            f"{names or '{}'}."
        )
        raise ImportFormatError(msg)
    return loaded, epoch if type(epoch) is int else None


def _check_tensor(path: Path, name: str, value: object, n_bytes: int) -> Tensor:
    """Return `value` if it is a dense tensor that is not larger than the file."""
    if not isinstance(value, Tensor):
        found = f"a {type(value).__name__}"
    elif value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        found = f"a {value.layout} tensor on {value.device.type}" + ", quantised" * value.is_quantized
    elif value.is_complex() or value.numel() * value.element_size() > n_bytes:
        # A view can repeat a few stored numbers without bound; copying it would exhaust memory.
        found = f"{value.dtype} {list(value.shape)} in a file of {n_bytes} bytes"
    else:
        return value.detach()
    msg = f"{path}: expected a dense tensor {name!r}, found {found}. Save the state_dict of the trained model."
    raise ImportFormatError(msg)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
