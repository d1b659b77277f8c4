"""Bundles: one prompt stack as one safetensors file, written canonically and read strictly.

Whether a bundle fits a backbone is checked when it is loaded (`prompted_clip`), not here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from prompt_store.contents import check_classes, check_shapes, check_values
from prompt_store.digest import digest_bytes
from prompt_store.errors import BundleInvalidError
from prompt_store.header import Header, build_header, check_with_safetensors, parse_header
from prompt_store.manifest import Manifest
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

MANIFEST_KEY: Final = "manifest"
_NUMPY_BY_NAME: Final[Mapping[str, np.dtype[Any]]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_NAME_BY_NUMPY: Final = {dtype: name for name, dtype in _NUMPY_BY_NAME.items()}


@dataclass(frozen=True)
class Bundle:
    """A validated bundle.

    Attributes:
        manifest: the validated manifest.
        tensors: name -> float16 or float32 array that owns its memory.
        digest: SHA-256 of the file's bytes.
    """

    manifest: Manifest
    tensors: Mapping[str, NDArray[Any]]
    digest: str


def _safe_location(location: tuple[int | str, ...]) -> str:
    """Format a field's path without unknown keys, which are client input."""
    known = {"boost", "adapt", "image", "text", *Manifest.model_fields}
    for part in Manifest.model_fields.values():
        known |= set(getattr(part.annotation, "model_fields", {}))
    known |= {"name", "depth", "tokens"}
    parts = [str(part) for part in location if isinstance(part, int) or part in known]
    return ".".join(parts) or "manifest"


def parse_manifest(data: bytes | str) -> Manifest:
    """Parse and validate a manifest.

    Raises:
        BundleInvalidError: `manifest_json`, not strict JSON; `manifest_invalid`, a field is missing, has the wrong
            type or is out of range.
    """
    try:
        fields = load_object(data)
    except StrictJsonError as error:
        raise BundleInvalidError("manifest_json", f"Invalid manifest: {error}.") from error
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = _safe_location(first["loc"])
        raise BundleInvalidError(
            "manifest_invalid", f"Invalid manifest field {field}: {first['msg']}.", field=field
        ) from error


def dump_manifest(manifest: Manifest) -> bytes:
    """Encode the manifest as canonical JSON, including unknown fields.

    Raises:
        BundleInvalidError: `manifest_json`, a free-form field contains a value that is not finite, plain JSON.
    """
    try:
        return dump_canonical(manifest.model_dump(mode="python"))
    except (TypeError, ValueError) as error:
        raise BundleInvalidError(
            "manifest_json", "Free-form manifest fields (recipe, metrics, ...) must contain plain, finite JSON values."
        ) from error


def _views(data: bytes, header: Header) -> Iterator[tuple[str, NDArray[Any]]]:
    for entry in header.entries:
        dtype = _NUMPY_BY_NAME[entry.dtype]
        count = (entry.end - entry.start) // dtype.itemsize
        flat = np.frombuffer(data, dtype=dtype, count=count, offset=header.data_start + entry.start)
        yield entry.name, flat.reshape(entry.shape)


def peek_manifest(data: bytes) -> Manifest:
    """Read the manifest without validating the tensors; the bundle may still be invalid.

    Raises:
        BundleInvalidError: the header or the manifest is invalid.
    """
    return parse_manifest(parse_header(data).metadata[MANIFEST_KEY])


def read_bundle(data: bytes) -> Bundle:
    """Parse and fully validate a bundle; the result is safe to store and serve.

    Deterministic: the checks run in a fixed order, cheapest first, and the first violation is raised.

    Args:
        data: the whole file. The same object is hashed, parsed and stored, so it cannot change in between.

    Returns:
        the bundle; its arrays are copies and do not keep `data` alive.

    Raises:
        LimitExceededError: the file is too large.
        BundleInvalidError: any other violation; `code` names the rule.
    """
    header = parse_header(data)
    check_with_safetensors(data, header)
    manifest = parse_manifest(header.metadata[MANIFEST_KEY])
    check_shapes(manifest, {entry.name: entry.shape for entry in header.entries})
    tensors = {name: view.copy() for name, view in _views(data, header)}
    check_values(tensors)
    check_classes(manifest)
    return Bundle(manifest, MappingProxyType(tensors), digest_bytes(data))


def write_bundle(manifest: Manifest, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Encode a bundle; deterministic.

    Args:
        manifest: describes the stack.
        tensors: name -> float16 or float32 array, as listed in `docs/bundle-format.md`.

    Returns:
        the file's bytes, validated by `read_bundle`.

    Raises:
        BundleInvalidError: not a valid bundle; codes as in `read_bundle`.
    """
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    chunks: list[bytes] = []
    # Wider types first, so that every tensor is aligned to its item size.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        array = tensors[name]
        dtype_name = _NAME_BY_NUMPY.get(array.dtype.newbyteorder("<"))
        if dtype_name is None:
            raise BundleInvalidError(
                "st_dtype", f"{name} has dtype {array.dtype}; convert it to float16 or float32.", field=name
            )
        specs[name] = (dtype_name, array.shape)
        chunks.append(np.ascontiguousarray(array, dtype=_NUMPY_BY_NAME[dtype_name]).tobytes())
    text = dump_manifest(manifest).decode("utf-8")
    data = b"".join([build_header({MANIFEST_KEY: text}, specs), *chunks])
    read_bundle(data)
    return data
