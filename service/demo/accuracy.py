"""Accuracy of one version of a domain on labelled images, measured over HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from service.demo.process import DemoError

BATCH_IMAGES: Final = 16
"""Images per request; the service's default limit."""
N_CONNECTIONS: Final = 2
TOP_K: Final = 3


@dataclass(frozen=True)
class LabelledImage:
    """An image file with its true class."""

    path: Path
    true_class: str


@dataclass(frozen=True)
class Measured:
    """The results for the images of one domain, in their order.

    Attributes:
        domain: the domain.
        version: the version that classified the images.
        accuracy: share of correct first predictions.
        predictions: the first `TOP_K` of each image, with `label` and `probability`.
        took_s: duration of all requests.
    """

    domain: str
    version: int
    accuracy: float
    predictions: list[list[dict[str, Any]]]
    took_s: float


def read_labelled(folder: Path) -> list[LabelledImage]:
    """List the images of a folder with one subfolder per class, in the order in which they were drawn.

    Raises:
        DemoError: there are none.
    """
    paths = sorted(folder.glob("*/*"), key=lambda path: path.name)
    if not paths:
        raise DemoError(f"No images in {folder}/<class>/.")
    return [LabelledImage(path, path.parent.name.replace("_", " ")) for path in paths]


def classify(
    client: httpx.Client, domain: str, images: Sequence[LabelledImage], version: int | None = None
) -> dict[str, Any]:
    """Classify up to `BATCH_IMAGES` images in one request; returns the response.

    Args:
        client: for the service.
        domain: the domain.
        images: the images.
        version: a stored version, or None for the live one.

    Raises:
        DemoError: the request or one of its images failed.
    """
    files = [("images", (image.path.name, image.path.read_bytes())) for image in images]
    parameters = {"top_k": TOP_K} | ({"version": version} if version is not None else {})
    reply = client.post(f"/classify/{domain}", params=parameters, files=files)
    if not reply.is_success or any(result["error"] for result in reply.json()["results"]):
        raise DemoError(f"Classifying images of {domain} failed: {reply.text}")
    answer: dict[str, Any] = reply.json()
    return answer


def measure(client: httpx.Client, domain: str, images: Sequence[LabelledImage], version: int) -> Measured:
    """Classify all images with one version, over `N_CONNECTIONS` connections.

    Raises:
        DemoError, httpx.HTTPError: a request failed.
    """
    batches = [images[start : start + BATCH_IMAGES] for start in range(0, len(images), BATCH_IMAGES)]
    started_s = time.perf_counter()
    with ThreadPoolExecutor(N_CONNECTIONS) as threads:
        answers = list(threads.map(lambda batch: classify(client, domain, batch, version), batches))
    took_s = time.perf_counter() - started_s
    found = [result["predictions"] for answer in answers for result in answer["results"]]
    n_right = sum(predictions[0]["label"] == image.true_class for predictions, image in zip(found, images, strict=True))
    return Measured(domain, version, n_right / len(images), found, took_s)
