"""Request bodies of the peers: each has the bytes of one JPEG file, in the form that the server takes."""

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from benchmarks.server import FORM

TRITON_HEADER_BYTES = 320
"""Length to which Triton's JSON header is padded, since its length goes into an HTTP header of all requests."""


@dataclass(frozen=True)
class BodyFormat:
    """How a peer takes an image and its domain.

    Attributes:
        content_type: of the requests.
        write: the body for a JPEG file and a domain.
        has_domain: the domain is in the body, so that there is a body for each domain; else it is in the path or
            in a header.
    """

    content_type: str
    write: Callable[[bytes, int], bytes]
    has_domain: bool = True


def form(jpeg: bytes, domain: int) -> bytes:
    """A multipart form with the fields `image` and `domain`."""
    files = {"image": ("image.jpg", jpeg, "image/jpeg")}
    headers = {"Content-Type": FORM}
    return httpx.Request("POST", "http://peer", data={"domain": str(domain)}, files=files, headers=headers).read()


def triton(jpeg: bytes, domain: int) -> bytes:
    """The binary tensor data extension of the Open Inference Protocol: a JSON header, then the file as one string."""
    string = struct.pack("<I", len(jpeg)) + jpeg
    image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(string)}}
    inputs = [image, {"name": "domain", "shape": [1, 1], "datatype": "INT32", "data": [domain]}]
    header = json.dumps({"inputs": inputs}).encode().ljust(TRITON_HEADER_BYTES)
    if len(header) > TRITON_HEADER_BYTES:
        raise ValueError(f"the header has {len(header)} bytes, more than {TRITON_HEADER_BYTES}")
    return header + string


def data_uri(jpeg: bytes, _: int) -> bytes:
    """OpenAI's embeddings API with the file as a data URI, as infinity takes images."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return json.dumps({"model": "clip", "modality": "image", "input": [uri]}).encode()


JPEG = BodyFormat("image/jpeg", lambda jpeg, _: jpeg, has_domain=False)
MULTIPART = BodyFormat(FORM, form)
TRITON = BodyFormat("application/octet-stream", triton)
DATA_URI = BodyFormat("application/json", data_uri, has_domain=False)
