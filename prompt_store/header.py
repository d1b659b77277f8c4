"""The safetensors header, read by our own strict rules before any size in it is trusted.

Knows the container: prefix, header, tensor entries, offsets. Does not know what the tensors are for.
safetensors gives memory safety; it still accepts duplicate keys, unknown entry fields, zero-size tensors and
names such as `../x`. This pass can only narrow what the library accepts, and the library is asked as well.
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
    """Where one tensor lies: `start` and `end` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that passed all rules; `data_start` is the offset of the first tensor byte in the file."""

    metadata: Mapping[str, str]
    entries: tuple[TensorEntry, ...]
    data_start: int


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _header_bytes(data: bytes) -> bytes:
    if len(data) > MAX_BUNDLE_BYTES:
        raise LimitExceededError(
            "too_large",
            f"expected at most {MAX_BUNDLE_BYTES} bytes, found {len(data)}; use fewer tokens, layers or classes",
            limit=MAX_BUNDLE_BYTES,
        )
    size = int.from_bytes(data[:PREFIX_BYTES], "little") if len(data) >= PREFIX_BYTES else 0
    if not 2 <= size <= MAX_HEADER_BYTES or PREFIX_BYTES + size > len(data):
        raise BundleInvalidError(
            "st_header_length",
            f"expected a safetensors file whose header has 2 to {MAX_HEADER_BYTES} bytes and lies inside the file; "
            "check that this is a whole safetensors file",
            limit=MAX_HEADER_BYTES,
        )
    header = data[PREFIX_BYTES : PREFIX_BYTES + size]
    if not header.startswith(b"{"):
        raise BundleInvalidError("st_header_start", "expected a header whose first byte is {; write the file again")
    return header


def _header_object(header: bytes) -> dict[str, Any]:
    if not header.rstrip(b" ").endswith(b"}"):
        raise BundleInvalidError("st_header_json", "expected a JSON header padded with nothing but spaces")
    try:
        return load_object(header)
    except DuplicateKeyError as error:
        raise BundleInvalidError("st_duplicate_key", f"header: {error}; write the file again") from error
    except StrictJsonError as error:
        raise BundleInvalidError("st_header_json", f"header: {error}; write the file again") from error


def _metadata(value: object) -> dict[str, str]:
    if (
        not isinstance(value, dict)
        or len(value) > MAX_METADATA_KEYS
        or not all(isinstance(text, str) for text in value.values())
        or "manifest" not in value
    ):
        raise BundleInvalidError(
            "st_metadata",
            f"expected __metadata__ with at most {MAX_METADATA_KEYS} texts, one of them called manifest; "
            "a plain safetensors file is not a bundle: make one with write_bundle",
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
            f"{name}: expected 1 to {MAX_RANK} dimensions of 1 to {MAX_DIM} and at most {MAX_ELEMENTS} elements",
            field=name,
            limit=MAX_ELEMENTS,
        )
    return tuple(value)


def _entry(name: str, value: object) -> TensorEntry:
    if _NAME.fullmatch(name) is None:
        raise BundleInvalidError(
            "st_name", "expected tensor names of 1 to 128 characters out of a-z, 0-9, _ and .; rename the tensor"
        )
    if not isinstance(value, dict) or set(value) != _ENTRY_KEYS:
        raise BundleInvalidError(
            "st_header_json", f"{name}: expected exactly dtype, shape and data_offsets", field=name
        )
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BundleInvalidError(
            "st_dtype", f"{name}: expected one of {', '.join(ITEM_BYTES)}; convert the tensor", field=name
        )
    shape = _shape(value["shape"], name)
    offsets = value["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise BundleInvalidError("st_offsets", f"{name}: expected two offsets, start and end", field=name)
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise BundleInvalidError(
            "st_offsets", f"{name}: expected offsets as far apart as the shape and type ask for", field=name
        )
    return TensorEntry(name, dtype, shape, offsets[0], offsets[1])


def _check_contiguous(entries: tuple[TensorEntry, ...], n_data_bytes: int) -> None:
    position = 0
    for entry in entries:
        if entry.start != position:
            raise BundleInvalidError(
                "st_offsets",
                f"{entry.name}: expected tensors that follow each other without gap or overlap",
                field=entry.name,
            )
        position = entry.end
    if position != n_data_bytes:
        raise BundleInvalidError(
            "st_trailing",
            f"expected the last tensor to end the file: {position} data bytes, found {n_data_bytes}; "
            "the file is cut short or has something appended",
        )


def parse_header(data: bytes) -> Header:
    """Check the container of a bundle, cheapest rule first.

    Args:
        data: the whole file.

    Returns:
        the header; entries in the order of their offsets.

    Raises:
        LimitExceededError: `too_large`.
        BundleInvalidError: a code that starts with `st_`; the first rule that is broken wins.
    """
    header = _header_bytes(data)
    fields = _header_object(header)
    metadata = _metadata(fields.pop("__metadata__", None))
    if not 1 <= len(fields) <= MAX_TENSORS:
        raise BundleInvalidError(
            "st_tensor_count", f"expected 1 to {MAX_TENSORS} tensors, found {len(fields)}", limit=MAX_TENSORS
        )
    entries = tuple(sorted((_entry(*item) for item in fields.items()), key=lambda entry: (entry.start, entry.end)))
    _check_contiguous(entries, len(data) - PREFIX_BYTES - len(header))
    return Header(metadata, entries, PREFIX_BYTES + len(header))


def check_second_opinion(data: bytes, header: Header) -> None:
    """Let the safetensors library read the same bytes and compare what it sees.

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
        raise BundleInvalidError(
            "st_parser_disagreement", "expected the safetensors library to accept the file too; write it again"
        ) from error
    if ours != theirs:
        raise BundleInvalidError(
            "st_parser_disagreement", "expected the safetensors library to see the same tensors; write the file again"
        )


def build_header(metadata: Mapping[str, str], specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Write the prefix and header for tensors stored in the given order; the same input gives the same bytes.

    Args:
        metadata: texts for `__metadata__`.
        specs: name -> (dtype, shape), in the order in which the tensors' bytes follow.

    Returns:
        prefix and header, padded with spaces so that the data starts at a multiple of 8.
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
