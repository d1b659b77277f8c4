"""Inference requests of the Open Inference Protocol (KServe v2, Triton): parameters, inputs, requested outputs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import msgspec
from fastapi import Request
from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompt_store.strict_json import StrictJsonError, load_object
from service.errors import MediaTypeError, RequestInvalidError
from service.http.body import media_type_of, read_body
from service.http.routes.json_images import decode_body
from service.http.routes.multipart_images import UploadedImage, too_many_images
from service.http.routes.requests import image_from_base64
from service.http.routes.tensors import binary_elements, binary_pixels, json_elements, json_pixels
from service.images.preprocessing import Pixels
from service.inference import StackKind
from service.settings import Settings

Parameters = TypeVar("Parameters", bound=BaseModel)

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
IMAGES, PIXELS = "images", "pixels"
INPUTS: Final = {IMAGES: "BYTES", PIXELS: "UINT8"}
"""Name and datatype of the inputs; a request has one of them."""
OUTPUTS: Final = ("labels", "probabilities", "class_ids", "embeddings")
DEFAULT_OUTPUTS: Final = OUTPUTS[:3]
FORM: Final = '{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": ["<base64>"]}]}'
KEY: Final = re.compile(rb'"(?:id|inputs|outputs|parameters|name|datatype|shape|data)"\s*+:')
MAX_SHAPE_BYTES: Final = 200
MAX_PARAMETERS_BYTES: Final = 256 * 1024
MAX_INLINE_BYTES: Final = 16 * 1024
"""Larger JSON is parsed on a thread."""


class InferParameters(BaseModel):
    """The parameters of a request; `priority` and `timeout` are those of Triton's schedule policy extension."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    top_k: int = Field(5, ge=1, description="maximum number of classes per image, most probable first")
    labels: str | None = Field(None, description="classify among these labels instead, separated by commas")
    stack: StackKind = Field("cascade", description="`boost` ignores the adapting prompts")
    priority: int = Field(0, ge=0, le=3, description="1 (high), 2 (normal) or 3 (low); 0 is the default, 2")
    timeout: int | None = Field(None, ge=1, description="timeout from the last byte of the body, in microseconds")
    binary_data_output: bool = Field(False, description="default of `binary_data` of the outputs")

    @property
    def priority_name(self) -> Literal["high", "normal", "low"]:
        """The priority as in classify requests."""
        return ("normal", "high", "normal", "low")[self.priority]


class InputParameters(BaseModel):
    """The parameters of an input."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    binary_data_size: int | None = Field(None, ge=0, description="bytes of this tensor after the JSON")


class OutputParameters(BaseModel):
    """The parameters of a requested output."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    binary_data: bool | None = Field(None, description="return this tensor as binary data")


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    return {name: schema[name] for name in ("type", "properties", "additionalProperties")}


_TENSOR_DOCS: Final = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"enum": list(INPUTS)},
        "datatype": {"enum": list(INPUTS.values())},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "description": "base64 of files, or numbers; none with `binary_data_size`"},
        "parameters": _schema(InputParameters),
    },
}
_OUTPUT_DOCS: Final = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"enum": list(OUTPUTS)}, "parameters": _schema(OutputParameters)},
}
REQUEST_CONTENT: Final = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": _schema(InferParameters),
                "inputs": {"type": "array", "items": _TENSOR_DOCS, "minItems": 1, "maxItems": 1},
                "outputs": {"type": "array", "items": _OUTPUT_DOCS},
            },
        }
    },
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
"""For the OpenAPI document: FastAPI does not parse these bodies."""


class _Input(Struct, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: Raw
    parameters: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


class _Output(Struct, forbid_unknown_fields=True):
    name: str
    parameters: Raw | UnsetType = UNSET


class _Request(Struct, forbid_unknown_fields=True):
    inputs: list[_Input]
    outputs: list[_Output] | UnsetType = UNSET
    parameters: Raw | UnsetType = UNSET
    id: str | UnsetType = UNSET


_DECODER: Final = msgspec.json.Decoder(_Request)


@dataclass(frozen=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: returned with the response; None if the request has none.
        images: files, or images that are decoded already, uint8 [H, W, 3].
        parameters: of the request.
        outputs: name of each output to return, and whether as binary data.
    """

    id: str | None
    images: Sequence[UploadedImage | Pixels]
    parameters: InferParameters
    outputs: Mapping[str, bool]


async def read_inference(request: Request, settings: Settings) -> InferRequest:
    """Read an inference request.

    Raises:
        MediaTypeError: neither JSON nor JSON with binary data.
        RequestInvalidError: malformed, or not supported.
        BodyTooLargeError: too many images.
    """
    if media_type_of(request) not in {"application/json", "application/octet-stream"}:
        raise MediaTypeError(f"Send application/json, or application/octet-stream with the header {HEADER_LENGTH}.")
    length = request.headers.get(HEADER_LENGTH)
    body = await read_body(request)
    if length is None:
        n_json = len(body)
    elif length.isascii() and length.isdecimal() and int(length) <= len(body):
        n_json = int(length)
    else:
        raise RequestInvalidError(
            f"{HEADER_LENGTH} must be the number of bytes of the JSON, at most the {len(body)} of the body."
        )
    if n_json <= MAX_INLINE_BYTES:
        return parse_inference(body, n_json, settings)
    return await asyncio.to_thread(parse_inference, body, n_json, settings)


def parse_inference(body: bytes, n_json: int, settings: Settings) -> InferRequest:
    """Parse a body whose first `n_json` bytes are JSON, followed by the binary data of the tensors.

    Raises:
        RequestInvalidError: malformed, or not supported.
        BodyTooLargeError: too many images.
    """
    request = decode_body(body[:n_json], _DECODER, FORM, KEY, _n_keys)
    parameters = _parameters(InferParameters, request.parameters, "parameters")
    images = _images(request.inputs, memoryview(body)[n_json:], settings)
    outputs: dict[str, bool] = {}
    for index, output in enumerate(request.outputs or ()):
        if output.name not in OUTPUTS or output.name in outputs:
            raise RequestInvalidError(f"outputs[{index}]: expected one of {', '.join(OUTPUTS)}, each at most once.")
        is_binary = _parameters(OutputParameters, output.parameters, f"outputs[{index}].parameters").binary_data
        outputs[output.name] = parameters.binary_data_output if is_binary is None else is_binary
    return InferRequest(
        request.id or None, images, parameters, outputs or dict.fromkeys(DEFAULT_OUTPUTS, parameters.binary_data_output)
    )


def _n_keys(request: _Request) -> int:
    """The number of matches of `KEY` if no key occurs twice."""
    structs: list[Struct] = [request, *request.inputs, *(request.outputs or ())]
    return sum(
        (value is not UNSET) + (len(KEY.findall(value)) if name == "parameters" and isinstance(value, Raw) else 0)
        for struct in structs
        for name, value in msgspec.structs.asdict(struct).items()
    )


def _parameters(kind: type[Parameters], raw: Raw | UnsetType, field: str) -> Parameters:
    """Validate the parameters in the object `field`.

    Raises:
        RequestInvalidError: unknown or invalid; the message gives the supported ones.
    """
    if raw is UNSET:
        return kind()
    try:
        if len(memoryview(raw)) > MAX_PARAMETERS_BYTES:
            raise RequestInvalidError(f"{field} must have at most {MAX_PARAMETERS_BYTES} bytes.")
        return kind.model_validate(load_object(bytes(raw)))
    except StrictJsonError as error:
        raise RequestInvalidError(f"{field} must be a JSON object: {error}.") from error
    except ValidationError as error:
        faults = "; ".join(f"{field}.{one['loc'][0]}: {one['msg']}" for one in error.errors(include_input=False))
        raise RequestInvalidError(f"{faults}. Supported: {', '.join(kind.model_fields)}.") from error


def _images(inputs: Sequence[_Input], binary: memoryview, settings: Settings) -> Sequence[UploadedImage | Pixels]:
    """The images of the only input, whose binary data is `binary`."""
    if len(inputs) != 1 or inputs[0].name not in INPUTS:
        raise RequestInvalidError(f"inputs: expected one of the inputs {' or '.join(INPUTS)}, found {len(inputs)}.")
    tensor, field = inputs[0], "inputs[0]"
    if tensor.datatype != INPUTS[tensor.name]:
        raise RequestInvalidError(f"{field}.datatype must be {INPUTS[tensor.name]} for the input {tensor.name}.")
    shape = _shape(tensor, f"{field}.shape")
    if shape[0] > settings.max_images:
        raise too_many_images(settings)
    _check_source(tensor, len(binary), field)
    if tensor.name == PIXELS:
        if tensor.data is UNSET:
            return list(binary_pixels(binary, shape))
        return list(json_pixels(tensor.data, shape, f"{field}.data"))
    if tensor.data is UNSET:
        return [UploadedImage(data) for data in binary_elements(binary, shape[0])]
    return [
        image_from_base64(raw, f"{field}.data[{row}]", settings)
        for row, raw in enumerate(json_elements(tensor.data, shape))
    ]


def _check_source(tensor: _Input, n_following: int, field: str) -> None:
    """Check that a tensor has its data either in the JSON or in all of the bytes that follow it."""
    n_binary = _parameters(InputParameters, tensor.parameters, f"{field}.parameters").binary_data_size
    if (n_binary is None) is (tensor.data is UNSET):
        raise RequestInvalidError(f"{field} must have either data or parameters.binary_data_size.")
    if (n_binary or 0) != n_following:
        raise RequestInvalidError(
            f"{field} has {n_binary or 0} bytes of binary data, but {n_following} bytes follow the JSON. "
            f"Send the number of bytes of the JSON as {HEADER_LENGTH}."
        )


def _shape(tensor: _Input, field: str) -> list[int]:
    """The shape; raises unless it is one of those that the input may have."""
    form = "[N] or [N, 1]" if tensor.name == IMAGES else "[N, height, width, 3], RGB with the channels last"
    found = bytes(tensor.shape)[:MAX_SHAPE_BYTES].decode(errors="replace")
    try:
        shape = msgspec.json.decode(found, type=list[int])
    except msgspec.MsgspecError as error:
        raise RequestInvalidError(f"{field} must be a list of integers: {form}.") from error
    is_valid = shape[1:] in ([], [1]) if tensor.name == IMAGES else len(shape) == 4 and shape[3] == 3
    if not shape or not is_valid or min(shape) < 1:
        raise RequestInvalidError(f"{field}: expected {form}, each at least 1; found {shape}.")
    return shape
