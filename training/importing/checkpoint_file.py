"""Checkpoint files of other projects: found, measured, and read without running any code that they hold.

Knows the files that Dassl writes (`<run>/<model name>/model.pth.tar-<epoch>`, `model-best.pth.tar`), bare state dicts
and safetensors. Does not know what any tensor means.

PyTorch files are pickles, which may run code as they are read. They go through torch's weights-only reader, which
builds tensors and plain containers and refuses everything else. Dassl stores its learning-rate schedule as an object
next to the tensors; `_Inert` stands in for such objects, takes what they hold and does nothing with it.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.errors import ImportFormatError

MAX_CHECKPOINT_BYTES: Final = 8 * 2**30
"""More than twice what these projects write: PromptSRC on ViT-L/14 in float32, image tower inside twice, takes 3 GB."""

_EPOCH_FILE: Final = re.compile(r"model\.pth\.tar-(\d+)")
_BEST_FILE: Final = "model-best.pth.tar"
_N_NAMED: Final = 8
_REFUSED_GLOBAL: Final = re.compile(r"GLOBAL (\S+)|unrecognized function (.+)")
_SCHEDULE_CLASSES: Final = (
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
    """One file's tensors.

    Attributes:
        path: the file.
        digest: `sha256:…` of its bytes.
        epoch: after which it was written, where it says so.
        tensors: by name, as stored: any dtype, on the CPU; `module.` of data-parallel runs is stripped.
    """

    path: Path
    digest: str
    epoch: int | None
    tensors: dict[str, Tensor]


def find_checkpoint(path: Path, model_name: str) -> Path:
    """The file itself, or the newest one of a Dassl run.

    Args:
        path: a checkpoint file, a run's output folder, or the model's folder inside it.
        model_name: the folder's name inside a run.

    Returns:
        The file with the highest epoch; `model-best.pth.tar` only where no file carries an epoch.

    Raises:
        ImportFormatError: nothing is there.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        msg = f"There is no file or folder {path}; give a checkpoint file or the output folder of a Dassl run."
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
        f"found {_shortened(entries) or 'an empty folder'}; name the checkpoint file itself."
    )
    raise ImportFormatError(msg)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's tensors.

    Args:
        path: a `.safetensors` file; any other name is read as a PyTorch file with weights-only loading, either a dict
            with `state_dict` or a bare state dict.

    Raises:
        ImportFormatError: too large, unreadable, not only tensors, or a tensor that is not plain and dense.
    """
    n_bytes = path.stat().st_size
    if n_bytes > MAX_CHECKPOINT_BYTES:
        msg = (
            f"{path} has {n_bytes} bytes, the limit is {MAX_CHECKPOINT_BYTES}, more than any checkpoint of these "
            "projects has. Save its state_dict alone and import that."
        )
        raise ImportFormatError(msg)
    loaded = _load_safetensors(path) if path.suffix == ".safetensors" else load_weights_only(path)
    state, epoch = _state_of(path, loaded)
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = name.removeprefix("module.")
        if plain in tensors:
            msg = f"{path} holds {plain!r} twice, with and without 'module.' in front; keep one of them."
            raise ImportFormatError(msg)
        tensors[plain] = _checked(path, plain, value, n_bytes)
    return Checkpoint(path, _digest_file(path), epoch, tensors)


class _Inert:
    """Stands in for a stored object that is none of our business; holds nothing and does nothing."""

    def __init__(self, *stored: object) -> None:
        del stored

    def __setstate__(self, state: object) -> None:
        del state


def _no_items(*factory: object) -> dict[object, object]:
    """What a stored `defaultdict` becomes: a plain dict, without whatever would make its defaults."""
    del factory
    return {}


def _called(path: str, stand_in: Any) -> Any:  # noqa: ANN401 - any class or function
    """Let weights-only loading, which goes by names, take `stand_in` for what is at `path`; nothing is imported."""
    stand_in.__module__, _, stand_in.__qualname__ = path.rpartition(".")
    stand_in.__name__ = stand_in.__qualname__
    return stand_in


_STAND_INS: Final = [
    *(_called(path, type("Inert", (_Inert,), {})) for path in _SCHEDULE_CLASSES),
    _called("builtins.dict", type("Inert", (_Inert,), {})),  # what makes a defaultdict's defaults
    _called("collections.defaultdict", _no_items),
]


def load_weights_only(path: Path) -> object:
    """What a PyTorch file holds, read without running code.

    Raises:
        ImportFormatError: the file is damaged, compressed, or asks for more than tensors and plain containers.
    """
    is_archive = zipfile.is_zipfile(path)
    try:
        if is_archive:
            _refuse_compression(path)
        with torch.serialization.safe_globals(_STAND_INS):
            # An archive is mapped, not read: CLIP's own weights are only looked at, one by one.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive or None)
    except ImportFormatError:
        raise
    except pickle.UnpicklingError as error:
        found = _REFUSED_GLOBAL.search(str(error))
        if found is None:
            raise ImportFormatError(_unreadable(path, error)) from error
        msg = (
            f"{path} holds more than tensors: to read it, Python would have to load {found[1] or found[2]!r} and could "
            "run any code. Only tensors are read. If you trust the file, open it where it was written and save "
            "its state_dict alone, as .pt or .safetensors."
        )
        raise ImportFormatError(msg) from error
    except Exception as error:  # torch has no common error for damaged files: KeyError, EOFError, RuntimeError …
        raise ImportFormatError(_unreadable(path, error)) from error


def _refuse_compression(path: Path) -> None:
    """PyTorch stores its records as they are; a compressed one may be small here and boundless in memory."""
    with zipfile.ZipFile(path) as archive:
        packed = [record.filename for record in archive.infolist() if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        msg = f"{path} holds the compressed record {packed[0]!r}; PyTorch writes none. Save it again with torch.save."
        raise ImportFormatError(msg)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise ImportFormatError(_unreadable(path, error)) from error
    return tensors


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{path} cannot be read as a checkpoint: {reason} Expected a PyTorch or safetensors file, whole."


def _state_of(path: Path, loaded: object) -> tuple[Mapping[str, object], int | None]:
    epoch = None
    if isinstance(loaded, Mapping) and "state_dict" in loaded:
        epoch = loaded.get("epoch")
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(name, str) for name in loaded):
        names = _shortened([str(name) for name in loaded]) if isinstance(loaded, Mapping) else type(loaded).__name__
        msg = (
            f"{path} holds no state dict: expected tensors by name, or a dict with 'state_dict'; found {names or '{}'}."
        )
        raise ImportFormatError(msg)
    return loaded, epoch if type(epoch) is int else None


def _checked(path: Path, name: str, value: object, n_bytes: int) -> Tensor:
    """Return the value if it is a plain tensor whose elements can all be in the file."""
    if not isinstance(value, Tensor):
        found = f"a {type(value).__name__}"
    elif value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        found = f"a {value.layout} tensor on {value.device.type}" + ", quantised" * value.is_quantized
    elif value.is_complex() or value.numel() * value.element_size() > n_bytes:
        # A view may repeat few stored numbers without end; copying it would fill the memory.
        found = f"{value.dtype} {list(value.shape)} in a file of {n_bytes} bytes"
    else:
        return value.detach()
    msg = f"{path}: expected a plain tensor under {name!r}, found {found}; save the state_dict of the trained model."
    raise ImportFormatError(msg)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:_N_NAMED]) + more
