"""Tensors of the Open Inference Protocol (KServe v2, Triton): in JSON, or as binary data after the JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray

from service.errors import RequestInvalidError
from service.http.routes.json_images import MALFORMED
from service.images.preprocessing import Pixels

LENGTH_BYTES: Final = 4
"""Before each element of a binary BYTES tensor, little endian."""
MAX_JSON_TENSOR_BYTES: Final = 2 * 1024 * 1024
"""Each number of a JSON list takes tens of bytes of memory; larger tensors must be binary."""
MAX_UINT8: Final = 255
DATATYPES: Final = {"float32": "FP32", "int32": "INT32"}


def binary_elements(binary: memoryview, n_expected: int) -> Iterator[bytes]:
    """The elements of a binary BYTES tensor."""
    at = 0
    for row in range(n_expected):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(binary[at:begin], "little")
        if at > len(binary) or begin > len(binary):
            raise RequestInvalidError(f"inputs[0]: the binary data ends before the end of element {row}.")
        yield bytes(binary[begin:at])
    if at < len(binary):
        raise RequestInvalidError(f"inputs[0]: {len(binary) - at} bytes follow the {n_expected} elements of the shape.")


def json_elements(raw: Raw, shape: Sequence[int]) -> Iterator[Raw]:
    """The elements of a JSON BYTES tensor, flat or nested as its shape."""
    rows = _list(raw, shape[0], "inputs[0].data")
    for row, one in enumerate(rows):
        is_nested = len(shape) > 1 and bytes(memoryview(one)[:1]) == b"["
        yield _list(one, 1, f"inputs[0].data[{row}]")[0] if is_nested else one


def list_items(raw: Raw, max_items: int) -> list[Raw]:
    """The first `max_items` elements of a JSON list; raises one of `MALFORMED` if it is none."""
    return [one for one in msgspec.structs.astuple(_list_decoder(max_items).decode(raw)) if one is not UNSET]


@lru_cache(maxsize=32)
def _list_decoder(max_elements: int) -> msgspec.json.Decoder[Any]:
    """Decodes a list, and skips the elements after the first `max_elements`."""
    fields = [(f"element_{index}", Raw | UnsetType, UNSET) for index in range(max_elements)]
    return msgspec.json.Decoder(msgspec.defstruct("Elements", fields, array_like=True))


def _list(raw: Raw, n_expected: int, field: str) -> list[Raw]:
    """The elements of a JSON list; builds at most one more than `n_expected`."""
    try:
        rows = list_items(raw, n_expected + 1)
    except MALFORMED as error:
        raise RequestInvalidError(f"{field} must be a list.") from error
    if len(rows) != n_expected:
        n_found = f"{len(rows)}" if len(rows) < n_expected else "more"
        raise RequestInvalidError(f"{field}: expected {n_expected} elements, as in the shape; found {n_found}.")
    return rows


def binary_pixels(binary: memoryview, shape: Sequence[int]) -> Pixels:
    """The values of a binary UINT8 tensor, without a copy."""
    if math.prod(shape) != len(binary):
        raise RequestInvalidError(
            f"inputs[0]: a UINT8 tensor of the shape {list(shape)} has {math.prod(shape)} bytes, found {len(binary)}."
        )
    return np.frombuffer(binary, np.uint8).reshape(shape)


def json_pixels(raw: Raw, shape: Sequence[int], field: str) -> Pixels:
    """The values of a JSON UINT8 tensor, flat or nested as its shape."""
    if len(memoryview(raw)) > MAX_JSON_TENSOR_BYTES:
        raise RequestInvalidError(
            f"{field} has more than {MAX_JSON_TENSOR_BYTES} bytes. Send it as binary data, or files as `images`."
        )
    try:
        values = np.asarray(msgspec.json.decode(raw, type=list[Any]))
    except (*MALFORMED, ValueError) as error:
        raise RequestInvalidError(f"{field} must be a list of integers, flat or nested as the shape.") from error
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > MAX_UINT8:
        raise RequestInvalidError(f"{field} must be a list of integers from 0 to 255, flat or nested as the shape.")
    if values.shape not in {tuple(shape), (math.prod(shape),)}:
        raise RequestInvalidError(
            f"{field}: expected the shape {list(shape)}, or all in one list; found {values.shape}."
        )
    return values.astype(np.uint8).reshape(shape)


class Tensor(NamedTuple):
    """A tensor of a response: an array, or strings in row-major order."""

    name: str
    shape: Sequence[int]
    values: NDArray[Any] | Sequence[str]

    @property
    def datatype(self) -> str:
        """The protocol's name of the type."""
        return DATATYPES[self.values.dtype.name] if isinstance(self.values, np.ndarray) else "BYTES"

    def bytes(self) -> bytes:
        """The binary data: little endian; a string is preceded by its length."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()
        encoded = [text.encode() for text in self.values]
        return b"".join(part for text in encoded for part in (len(text).to_bytes(LENGTH_BYTES, "little"), text))


def encode_response(
    head: Mapping[str, Any], tensors: Sequence[Tensor], is_binary: Mapping[str, bool]
) -> tuple[bytes, int]:
    """The body of a response, and the number of bytes of its JSON; binary data follows it."""
    outputs, binary = [], []
    for tensor in tensors:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if is_binary[tensor.name]:
            binary.append(tensor.bytes())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = tensor.values.ravel().tolist() if isinstance(tensor.values, np.ndarray) else tensor.values
        outputs.append(output)
    text = msgspec.json.encode({**head, "outputs": outputs})
    return b"".join([text, *binary]), len(text)
