"""The operations of a CasPL server's clients: classify images, and change versions."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypedDict
from urllib.parse import quote

import httpx
import numpy as np

from caspl.errors import ImageError, from_problem
from caspl.images import ImageInput, ImagesInput, as_list, encode, n_bytes
from caspl.requests import TOO_LARGE, Concurrently, Operation, Request, accepted, chunks, domain_path, response_body
from caspl.results import Classification, Domain, Prediction, Version
from prompt_store.bundle import peek_manifest
from prompt_store.signatures import signature_path

IMAGES_PER_REQUEST: Final = 16
BYTES_PER_REQUEST: Final = 30 * 2**20
"""Of the 32 MiB that a server accepts by default; the rest is for multipart headers."""


class ClassifyOptions(TypedDict, total=False):
    """Keyword arguments of `classify`."""

    top_k: int
    labels: Sequence[str] | None
    version: int | None
    abstain: float | None
    embedding: bool


def classify(
    images: ImagesInput,
    domain: str | Sequence[str],
    *,
    top_k: int = 5,
    labels: Sequence[str] | None = None,
    version: int | None = None,
    abstain: float | None = None,
    embedding: bool = False,
) -> Operation[list[Classification]]:
    """Classify images, at most 16 and 30 MiB per request, four requests at a time.

    Args:
        images: one or several: file paths, encoded bytes, PIL images, or uint8 arrays [H, W, 3] (RGB) or [H, W]. Files
            are sent as they are, pixels as PNG.
        domain: one for all images, or one per image.
        top_k: maximum number of classes per image.
        labels: open vocabulary: classify among these instead of the domain's classes; a list, or one string with
            commas.
        version: use this version instead of the live one; only with one domain.
        abstain: abstention rate, such as 0.05: images that are classified less reliably have `abstained` set and no
            label. The version needs a threshold for it; without `labels` only.
        embedding: return image embeddings.

    Returns:
        One result per image, in order; a rejected image has `error` set and does not affect others.

    Raises:
        CasplError: the server cannot be reached or rejects a request; see `caspl.errors`.
        OSError: a file cannot be read.
    """
    query = {
        "top_k": top_k,
        "labels": labels or None,
        "version": version,
        "abstain": abstain,
        "return": "embedding" if embedding else None,
    }
    params = {name: value for name, value in query.items() if value is not None}
    all_images = as_list(images)
    path, fields = "/classify", domain
    if isinstance(domain, str):
        path, fields = f"/classify/{quote(domain, safe='')}", ["images"] * len(all_images)
    parts = list(zip(fields, all_images, strict=True))
    sizes = [n_bytes(image) for image in all_images]
    requests = [
        _classify_chunk(path, chunk, params) for chunk in chunks(parts, sizes, IMAGES_PER_REQUEST, BYTES_PER_REQUEST)
    ]
    if len(requests) == 1:
        return (yield from requests[0])
    results: list[list[Classification]] = yield Concurrently(requests)
    return [result for chunk in results for result in chunk]


def classify_files(
    files: Sequence[Path], domain: str, options: ClassifyOptions
) -> Operation[list[tuple[Path, Classification]]]:
    """Classify files like `classify`; a file that cannot be read has `error` set.

    Raises:
        CasplError: the server cannot be reached or rejects a request.
    """
    read: dict[Path, bytes] = {}
    results: dict[Path, Classification] = {}
    for file in files:
        try:
            read[file] = file.read_bytes()
        except OSError as error:
            problem = ImageError("Cannot read the file", f"{error.strerror}.", code="file_unreadable")
            results[file] = Classification(domain, error=problem)
    classified = yield from classify(list(read.values()), domain, **options)
    results |= dict(zip(read, classified, strict=True))
    return [(file, results[file]) for file in files]


def domains() -> Operation[list[Domain]]:
    """All domains of the server.

    Raises:
        CasplError: the server cannot be reached or rejects the request.
    """
    body = accepted((yield Request("GET", "/domains")), "domains")
    return [
        Domain(found["domain"], found["state"], found["version"], found["digest"], found["n_classes"])
        for found in body["domains"]
    ]


def publish(
    bundle: str | PathLike[str] | bytes,
    *,
    domain: str | None = None,
    activate: bool = False,
    signature: str | PathLike[str] | bytes | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> Operation[Version]:
    """Upload a bundle.

    Args:
        bundle: a bundle file or its bytes.
        domain: taken from the bundle by default.
        activate: also make it live.
        signature: the signature of `caspl bundle sign`, as a file or its bytes; by default the file with `.sig`
            appended to the bundle's name, if it exists.
        on_sent: called with the number of bytes sent so far; a retry begins again.

    Raises:
        CasplError: the server cannot be reached or rejects the bundle or its signature.
        BundleInvalidError: no `domain` was given and the file is not a bundle.
        OSError: the file cannot be read.
    """
    data = bundle if isinstance(bundle, bytes) else Path(bundle).read_bytes()
    path = domain_path(domain or peek_manifest(data).domain, "versions")
    signed = _signature(bundle, signature)
    headers = {} if signed is None else {"Caspl-Signature": b64encode(signed).decode()}
    options = {"content": data, "params": {"activate": True} if activate else {}, "headers": headers}
    body = accepted((yield Request("POST", path, options, is_repeatable=True, on_sent=on_sent)), "version")
    return Version(body["domain"], body["version"], body["digest"], body["is_live"], body["is_new"])


def _signature(bundle: str | PathLike[str] | bytes, signature: str | PathLike[str] | bytes | None) -> bytes | None:
    """Read the signature of a bundle, None if there is none."""
    if isinstance(signature, bytes):
        return signature
    if signature is not None:
        return Path(signature).read_bytes()
    if isinstance(bundle, bytes):
        return None
    path = signature_path(Path(bundle))
    return path.read_bytes() if path.exists() else None


def activate(domain: str, version: int, *, expected_digest: str | None = None) -> Operation[Version]:
    """Make a version live; returns once it serves.

    Args:
        domain: its domain.
        version: its number.
        expected_digest: digest of the version that must be live now.

    Raises:
        ConflictError: another version is live.
        CasplError: no such domain or version, or the server cannot be reached or fails.
    """
    headers = {"If-Match": f'"{expected_digest}"'} if expected_digest else {}
    path = domain_path(domain, "live")
    body = accepted((yield Request("PUT", path, {"json": {"version": version}, "headers": headers})), "version")
    return Version(body["domain"], body["version"], body["digest"])


def rollback(domain: str) -> Operation[Version]:
    """Make the previously live version live; returns once it serves.

    Raises:
        CasplError: no such domain, no earlier version, or the server cannot be reached or fails.
    """
    body = accepted((yield Request("POST", domain_path(domain, "rollback"))), "version")
    return Version(body["domain"], body["version"], body["digest"])


def _classify_chunk(
    path: str, parts: Sequence[tuple[str, ImageInput]], params: dict[str, Any]
) -> Operation[list[Classification]]:
    """One request, or one for each half of the images if the server's limit is lower than the default."""
    files = [(name, encode(image)) for name, image in parts]
    response: httpx.Response = yield Request("POST", path, {"files": files, "params": params}, is_repeatable=True)
    if response.status_code == TOO_LARGE and len(parts) > 1:
        middle = len(parts) // 2
        first = yield from _classify_chunk(path, parts[:middle], params)
        return first + (yield from _classify_chunk(path, parts[middle:], params))
    body, status = response_body(response, "results"), response.status_code
    if response.is_success:
        return [_classification({**body, **result}) for result in body["results"]]
    error = from_problem(body, status)
    if error.code == "images_rejected":
        return [_classification({"error": problem}) for problem in body["errors"]]
    if len(parts) == 1 and (error.code.startswith("image_") or status == TOO_LARGE):
        return [_classification({"error": body | {"status": status}})]
    raise error


def _classification(result: dict[str, Any]) -> Classification:
    problem, embedding = result.get("error"), result.get("embedding")
    return Classification(
        result.get("domain"),
        result.get("version"),
        result.get("digest"),
        tuple(
            Prediction(found["label"], found["class_id"], found["probability"])
            for found in result.get("predictions", ())
        ),
        tuple(result.get("notes", ())),
        from_problem(problem, problem.get("status", 422)) if problem else None,
        result.get("abstained", False),
        None if embedding is None else np.array(embedding, dtype=np.float32),
        result.get("is_candidate", False),
    )
