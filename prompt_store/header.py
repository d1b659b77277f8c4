"""Strict parser and writer for the safetensors header.

The safetensors library is memory-safe, but accepts duplicate keys, unknown entry fields, zero-size tensors and names
such as `../x`. This parser rejects those. The library parses the same bytes as well, and both results must agree.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import safetensors

from prompt_store.errors import BundleInvalidError, LimitExceededError
from prompt_store.strict_json import DuplicateKeyError, StrictJsonError, dump_canonical, load_object

MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
MAX_HEADER_BYTES: Final = 4 * 1024 * 1024
MAX_METADATA_KEYS: Final = 32
MAX_TENSORS: Final = 256
MAX_RANK: Final = 4
MAX_DIM: Final = 65_536
MAX_ELEMENTS: Final = 2**24
PREFIX_BYTES: Final = 8
ITEM_BYTES: Final[Mapping[str, int]] = {"F16": 2, "F32": 4}  # a subset of safetensors' types: float16, float32

_NAME: Final = re.compile(r"[a-z0-9_.]{1,128}")
_ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's entry; `start` and `end` are byte offsets from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A validated header; `data_start` is the file offset of the first tensor byte."""

    metadata: Mapping[str, str]
    entries: tuple[TensorEntry, ...]
    data_start: int


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _header_bytes(data: bytes) -> bytes:
    if len(data) > MAX_BUNDLE_BYTES:
        raise LimitExceededError(
            "too_large",
            f"The bundle has {len(data)} bytes; the limit is {MAX_BUNDLE_BYTES}. Use fewer tokens, layers or classes.",
            limit=MAX_BUNDLE_BYTES,
        )
    size = int.from_bytes(data[:PREFIX_BYTES], "little") if len(data) >= PREFIX_BYTES else 0
    if not 2 <= size <= MAX_HEADER_BYTES or PREFIX_BYTES + size > len(data):
        raise BundleInvalidError(
            "st_header_length",
            f"Not a complete safetensors file: the header must have 2 to {MAX_HEADER_BYTES} bytes, all in the file.",
            limit=MAX_HEADER_BYTES,
        )
    header = data[PREFIX_BYTES : PREFIX_BYTES + size]
    if not header.startswith(b"{"):
        raise BundleInvalidError("st_header_start", "The safetensors header must start with {.")
    return header


def _header_object(header: bytes) -> dict[str, Any]:
    if not header.rstrip(b" ").endswith(b"}"):
        raise BundleInvalidError("st_header_json", "The safetensors header must be JSON padded with spaces only.")
    try:
        return load_object(header)
    except DuplicateKeyError as error:
        raise BundleInvalidError("st_duplicate_key", f"Invalid safetensors header: {error}.") from error
    except StrictJsonError as error:
        raise BundleInvalidError("st_header_json", f"Invalid safetensors header: {error}.") from error


def _metadata(value: object) -> dict[str, str]:
    if (
        not isinstance(value, dict)
        or len(value) > MAX_METADATA_KEYS
        or not all(isinstance(text, str) for text in value.values())
        or "manifest" not in value
    ):
        raise BundleInvalidError(
            "st_metadata",
            f"__metadata__ must map at most {MAX_METADATA_KEYS} keys to strings, and contain `manifest`. "
            "A plain safetensors file is not a bundle; create one with write_bundle.",
            field="__metadata__",
            limit=MAX_METADATA_KEYS,
        )
    return dict(value)


def _shape(value: object, name: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_RANK
        or not all(_is_count(dim) and 1 <= dim <= MAX_DIM for dim in value)
        or math.prod(value) > MAX_ELEMENTS
    ):
        raise BundleInvalidError(
            "st_shape",
            f"{name} must have 1 to {MAX_RANK} dimensions of 1 to {MAX_DIM}, and at most {MAX_ELEMENTS} elements.",
            field=name,
            limit=MAX_ELEMENTS,
        )
    return tuple(value)


def _entry(name: str, value: object) -> TensorEntry:
    if _NAME.fullmatch(name) is None:
        raise BundleInvalidError("st_name", "Tensor names have 1 to 128 characters from a-z, 0-9, _ and `.`.")
    if not isinstance(value, dict) or set(value) != _ENTRY_KEYS:
        raise BundleInvalidError("st_header_json", f"{name} must have only dtype, shape and data_offsets.", field=name)
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BundleInvalidError("st_dtype", f"{name} must have dtype {' or '.join(ITEM_BYTES)}.", field=name)
    shape = _shape(value["shape"], name)
    offsets = value["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise BundleInvalidError("st_offsets", f"{name} must have two data_offsets, start and end.", field=name)
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise BundleInvalidError("st_offsets", f"{name}: data_offsets do not match shape and dtype.", field=name)
    return TensorEntry(name, dtype, shape, offsets[0], offsets[1])


def _check_contiguous(entries: tuple[TensorEntry, ...], n_data_bytes: int) -> None:
    position = 0
    for entry in entries:
        if entry.start != position:
            raise BundleInvalidError(
                "st_offsets",
                f"{entry.name}: tensors must be contiguous, without gaps or overlaps.",
                field=entry.name,
            )
        position = entry.end
    if position != n_data_bytes:
        raise BundleInvalidError(
            "st_trailing",
            f"The file is truncated or has trailing bytes: {n_data_bytes} data bytes, expected {position}.",
        )


def parse_header(data: bytes) -> Header:
    """Parse and validate the header of a bundle file, cheapest checks first.

    Args:
        data: the whole file.

    Returns:
        the header; entries are sorted by offset.

    Raises:
        LimitExceededError: `too_large`.
        BundleInvalidError: the first violation; its code starts with `st_`.
    """
    header = _header_bytes(data)
    fields = _header_object(header)
    metadata = _metadata(fields.pop("__metadata__", None))
    if not 1 <= len(fields) <= MAX_TENSORS:
        raise BundleInvalidError(
            "st_tensor_count", f"A bundle has 1 to {MAX_TENSORS} tensors, found {len(fields)}.", limit=MAX_TENSORS
        )
    entries = tuple(sorted((_entry(*item) for item in fields.items()), key=lambda entry: (entry.start, entry.end)))
    _check_contiguous(entries, len(data) - PREFIX_BYTES - len(header))
    return Header(metadata, entries, PREFIX_BYTES + len(header))


def check_with_safetensors(data: bytes, header: Header) -> None:
    """Parse the same bytes with the safetensors library and compare the result.

    Raises:
        BundleInvalidError: `st_parser_disagreement`.
    """
    ours = {(entry.name, entry.dtype, entry.shape, entry.end - entry.start) for entry in header.entries}
    try:
        theirs = {
            (name, spec["dtype"], tuple(spec["shape"]), len(spec["data"]))
            for name, spec in safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        }
    except Exception as error:  # the library raises several unrelated types
        raise BundleInvalidError("st_parser_disagreement", "The safetensors library rejects the file.") from error
    if ours != theirs:
        raise BundleInvalidError("st_parser_disagreement", "The safetensors library reads other tensors from the file.")


def build_header(metadata: Mapping[str, str], specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Build the length prefix and header; deterministic.

    Args:
        metadata: strings for `__metadata__`.
        specs: name -> (dtype, shape), in the order of the tensors' bytes.

    Returns:
        prefix and header, padded with spaces so that the data is 8-byte aligned.
    """
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in specs.items():
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = dump_canonical(fields)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(PREFIX_BYTES, "little") + header
