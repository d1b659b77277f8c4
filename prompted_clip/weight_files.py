"""Reads the tensors of a weights file: safetensors, PyTorch checkpoints and OpenAI's TorchScript archives.

Nothing in a file runs: pickles are loaded with `weights_only=True`, and TorchScript archives are loaded without calling
their code. Files of other kinds are errors that name the kind and the next step.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prompted_clip.errors import WeightsError

OPENAI_FACTS: Final = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Integers among the tensors of OpenAI's archives; they mark the weights as OpenAI's."""

_SHARD: Final = re.compile(r"-\d+-of-\d+\.")
_REJECTED_GLOBAL: Final = re.compile(r"GLOBAL (\S+)|unrecognized function (.+)")
_WRAPPERS: Final = ("module.", "_orig_mod.")
"""Prefixes that data-parallel training and torch.compile add to all names."""
_TINYCLIP_PART: Final = re.compile(
    r"(_(image_encoder|text_encoder|logit_scale)|(image|text)_encoder_without_ddp)\.(module\.)?"
)
"""Modules of TinyCLIP (`open_clip/model.py` in its repository) around open_clip's names."""
_HEAD_BYTES: Final = 1024
_NOT_WEIGHTS: Final[Mapping[bytes, str]] = {
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` where it was cloned, and copy the file again",
    b"<": "an HTML or XML page, such as a download page; download the file itself (on the Hugging Face Hub, the "
    "address with /resolve/ instead of /blob/)",
    b"{": "a JSON file; pass the file with the tensors",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"GGUF": "a GGUF model; pass open_clip's file",
    b"\x89HDF": "a Keras or HDF5 file; pass open_clip's file",
    b"\x93NUMPY": "a NumPy array; pass open_clip's file",
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by name, on the CPU, in the stored dtype, without prefixes of wrappers and of TinyCLIP.

    Raises:
        WeightsError: missing, damaged, of another kind, or without tensors by name; the message names the kind.
    """
    if path.suffix == ".safetensors" or _is_safetensors(_head(path)):
        loaded: object = read_safetensors(path)
    elif _is_torchscript(path):
        loaded = _read_torchscript(path)
    else:
        loaded = load_weights_only(path)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()) or not loaded:
        found = f"a dict with {shortened(map(str, loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        msg = f"{path} contains {found}; expected tensors by name, or 'state_dict'. Save only the state_dict."
        raise WeightsError(msg)
    tensors = {str(name): value.detach() for name, value in loaded.items()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if all(_TINYCLIP_PART.match(name) for name in tensors):
        tensors = {_TINYCLIP_PART.sub("", name, count=1): value for name, value in tensors.items()}
    return tensors


def check_kind(path: Path) -> None:
    """Check that a file may contain tensors, from its first bytes.

    Raises:
        WeightsError: it cannot be read or is another kind of file, such as a Git LFS pointer or an HTML page.
    """
    head = _head(path)
    if _SHARD.search(path.name) or b'"weight_map"' in head:
        kind = "part of a sharded checkpoint; merge the shards to one file, or pass open_clip's file of these weights"
    elif not head:
        kind = "empty; download it again"
    elif _is_safetensors(head) or head.startswith(b"\x80"):
        return
    elif head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            kind = "an incomplete archive; download it again"
        elif any(name.endswith("data.pkl") for name in _zip_names(path)):
            return
        else:
            kind = "a zip archive but not PyTorch's; unpack it"
    else:
        start = head.lstrip()
        kinds = (kind for magic, kind in _NOT_WEIGHTS.items() if start.startswith(magic))
        kind = next(kinds, "neither a PyTorch nor a safetensors file; pass open_clip's file of the weights")
    msg = f"{path} is {kind}."
    raise WeightsError(msg)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        WeightsError: damaged or incomplete.
    """
    check_kind(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise WeightsError(_unreadable(path, error)) from error
    return tensors


def load_weights_only(path: Path, placeholders: Sequence[Callable[..., Any]] = ()) -> object:
    """Load a PyTorch file without executing code from it.

    Args:
        path: the file.
        placeholders: further classes and functions that may be built.

    Raises:
        WeightsError: damaged, compressed, or contains objects other than tensors and containers.
    """
    check_kind(path)
    if _is_torchscript(path):
        msg = f"{path} is a TorchScript archive, not a checkpoint. Save only its state_dict."
        raise WeightsError(msg)
    is_archive = zipfile.is_zipfile(path)
    try:
        if is_archive:
            _reject_compression(path)
        with torch.serialization.safe_globals(list(placeholders)):
            # Memory-map archives: not all tensors are copied.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive or None)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        found = _REJECTED_GLOBAL.search(str(error))
        if found is None:
            raise WeightsError(_unreadable(path, error)) from error
        msg = (
            f"{path} contains objects other than tensors: loading {found[1] or found[2]!r} could execute arbitrary "
            "code. If you trust the file, open it where it was written and save only its state_dict, as .pt or "
            ".safetensors."
        )
        raise WeightsError(msg) from error
    except Exception as error:  # damaged files raise KeyError, EOFError, RuntimeError …
        raise WeightsError(_unreadable(path, error)) from error


def shortened(parts: Iterable[str], most: int = 5) -> str:
    """The first parts, printable, and the number of the others."""
    shown = [part[:120] if part.isprintable() else ascii(part[:120]) for part in parts]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        msg = f"Cannot read the weights {path}: {error.strerror}."
        raise WeightsError(msg) from error


def _is_safetensors(head: bytes) -> bool:
    """Whether these are a header's length, at most 100 MB as in the format, and its opening brace."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _zip_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _is_torchscript(path: Path) -> bool:
    return zipfile.is_zipfile(path) and any(name.endswith("/constants.pkl") for name in _zip_names(path))


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    check_kind(path)
    with zipfile.ZipFile(path) as archive:
        code = [archive.read(name) for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
    if any(b"__setstate__" in text for text in code):
        msg = f"{path} is a TorchScript archive that runs code when it is loaded. Save only its state_dict."
        raise WeightsError(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, but its successor does not read archives
            module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        return dict(module.state_dict())
    except Exception as error:
        raise WeightsError(_unreadable(path, error)) from error


def _reject_compression(path: Path) -> None:
    """Reject compressed records, which could expand without bound; PyTorch does not write any."""
    with zipfile.ZipFile(path) as archive:
        packed = [record.filename for record in archive.infolist() if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        msg = f"{path} contains the compressed record {packed[0]!r}. Save the file again with torch.save."
        raise WeightsError(msg)


def _unreadable(path: Path, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, pickle.UnpicklingError):
        reason = "damaged pickle."  # torch's text recommends weights_only=False
    return f"{path} cannot be read as a checkpoint: {reason} Expected a complete PyTorch or safetensors file."
