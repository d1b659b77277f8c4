"""Bundles: one prompt stack as one safetensors file, written canonically and read strictly.

Knows the file as a whole and joins the checks of `header`, `manifest` and `contents`. Does not know the store,
torch or any backbone: whether a bundle fits a backbone is decided where the backbone is.
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
from prompt_store.header import Header, build_header, check_second_opinion, parse_header
from prompt_store.manifest import Manifest
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

MANIFEST_KEY: Final = "manifest"
_NUMPY_BY_NAME: Final[Mapping[str, np.dtype[Any]]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_NAME_BY_NUMPY: Final = {dtype: name for name, dtype in _NUMPY_BY_NAME.items()}


@dataclass(frozen=True)
class Bundle:
    """One checked bundle.

    Attributes:
        manifest: what it says about itself.
        tensors: name -> float16 or float32 array that owns its memory.
        digest: SHA-256 of the file's bytes, its identity.
    """

    manifest: Manifest
    tensors: Mapping[str, NDArray[Any]]
    digest: str

    @property
    def n_tensor_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(array.nbytes for array in self.tensors.values())


def _safe_location(location: tuple[int | str, ...]) -> str:
    """Write where a field is; keys that a client invented are left out."""
    known = {"boost", "adapt", "image", "text", *Manifest.model_fields}
    for part in Manifest.model_fields.values():
        known |= set(getattr(part.annotation, "model_fields", {}))
    known |= {"name", "depth", "tokens"}
    parts = [str(part) for part in location if isinstance(part, int) or part in known]
    return ".".join(parts) or "manifest"


def parse_manifest(data: bytes | str) -> Manifest:
    """Read a manifest from its JSON.

    Raises:
        BundleInvalidError: `manifest_json`, not strict JSON; `manifest_invalid`, a field is missing, of the wrong
            type or out of bounds.
    """
    try:
        fields = load_object(data)
    except StrictJsonError as error:
        raise BundleInvalidError("manifest_json", f"manifest: {error}; write the bundle again") from error
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = _safe_location(first["loc"])
        raise BundleInvalidError(
            "manifest_invalid", f"manifest field {field}: {first['msg']}; correct it and write again", field=field
        ) from error


def dump_manifest(manifest: Manifest) -> bytes:
    """Write the manifest as canonical JSON, unknown fields included.

    Raises:
        BundleInvalidError: `manifest_json`, a free field holds something that is not plain, finite JSON.
    """
    try:
        return dump_canonical(manifest.model_dump(mode="python"))
    except (TypeError, ValueError) as error:
        raise BundleInvalidError(
            "manifest_json", "expected plain JSON values in recipe, metrics and the other free fields; convert them"
        ) from error


def _views(data: bytes, header: Header) -> Iterator[tuple[str, NDArray[Any]]]:
    for entry in header.entries:
        dtype = _NUMPY_BY_NAME[entry.dtype]
        count = (entry.end - entry.start) // dtype.itemsize
        flat = np.frombuffer(data, dtype=dtype, count=count, offset=header.data_start + entry.start)
        yield entry.name, flat.reshape(entry.shape)


def peek_manifest(data: bytes) -> Manifest:
    """Read the manifest after the header's rules only; for showing a bundle that `read_bundle` may refuse.

    Raises:
        BundleInvalidError: the container or the manifest is broken.
    """
    return parse_manifest(parse_header(data).metadata[MANIFEST_KEY])


def read_bundle(data: bytes) -> Bundle:
    """Read and check a bundle; what this returns may be stored and served.

    The same bytes always give the same result, and every input gives a bundle or an error with one code.
    Rules run cheapest first and the first one that is broken wins.

    Args:
        data: the whole file. The same object is hashed, parsed and later stored, so nothing can change in between.

    Returns:
        the bundle; its arrays are copies and do not keep `data` alive.

    Raises:
        LimitExceededError: more bytes than a bundle may have.
        BundleInvalidError: any other broken rule; `code` names it.
    """
    header = parse_header(data)
    check_second_opinion(data, header)
    manifest = parse_manifest(header.metadata[MANIFEST_KEY])
    check_shapes(manifest, {entry.name: entry.shape for entry in header.entries})
    tensors = {name: view.copy() for name, view in _views(data, header)}
    check_values(tensors)
    check_classes(manifest)
    return Bundle(manifest, MappingProxyType(tensors), digest_bytes(data))


def write_bundle(manifest: Manifest, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Write a bundle; the same manifest and values always give the same bytes.

    Args:
        manifest: describes the stack.
        tensors: name -> float16 or float32 array, as `docs/bundle-format.md` lists them.

    Returns:
        the file's bytes, already accepted by `read_bundle`.

    Raises:
        BundleInvalidError: the parts do not make a valid bundle; the codes are those of `read_bundle`.
    """
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    chunks: list[bytes] = []
    # Wider types first, so that every tensor starts at a multiple of its item size.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        array = tensors[name]
        dtype_name = _NAME_BY_NUMPY.get(array.dtype.newbyteorder("<"))
        if dtype_name is None:
            raise BundleInvalidError(
                "st_dtype", f"{name}: expected float16 or float32, found {array.dtype}; convert it", field=name
            )
        specs[name] = (dtype_name, array.shape)
        chunks.append(np.ascontiguousarray(array, dtype=_NUMPY_BY_NAME[dtype_name]).tobytes())
    text = dump_manifest(manifest).decode("utf-8")
    data = b"".join([build_header({MANIFEST_KEY: text}, specs), *chunks])
    read_bundle(data)
    return data
