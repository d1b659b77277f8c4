"""Accuracy of one version of a domain on labelled images, measured over HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from caspl import Client, Prediction
from service.demo.process import DemoError

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
        predictions: the first `TOP_K` of each image.
        took_s: duration of all requests.
    """

    domain: str
    version: int
    accuracy: float
    predictions: Sequence[Sequence[Prediction]]
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


def measure(client: Client, domain: str, images: Sequence[LabelledImage], version: int) -> Measured:
    """Classify all images with one version.

    Raises:
        CasplError: a request failed, or an image was rejected.
    """
    started_s = time.perf_counter()
    results = client.classify([image.path for image in images], domain, top_k=TOP_K, version=version)
    took_s = time.perf_counter() - started_s
    n_right = sum(result.label == image.true_class for result, image in zip(results, images, strict=True))
    return Measured(domain, version, n_right / len(images), [result.predictions for result in results], took_s)
