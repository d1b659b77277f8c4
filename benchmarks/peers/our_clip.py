"""Our model with the interface of `PlainClip`, to put it behind another server."""

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bundles import BundleShape, domain_name, random_bundle
from benchmarks.peers.plain_clip import N_DOMAINS
from prompt_store.bundle import read_bundle
from prompted_clip.preprocess import to_pixels
from service.configuration.environment import load_settings
from service.engine.loading import load_model


class OurClip:
    """The service's model with 12 prompt tokens per domain; `settings` are further ones, or another dtype."""

    def __init__(
        self, backbone: str, dtype: str, threads: int, settings: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        given = {"backbone": backbone, "dtype": dtype, "n_torch_threads": threads, "random_weights": 0, "device": "cpu"}
        self._model = load_model(load_settings(**given | dict(settings)))
        self._backbone = self._model.backbone
        self._stacks = [
            self._model.load_stack(read_bundle(random_bundle(self._backbone, domain_name(index), 1, BundleShape())))
            for index in range(N_DOMAINS)
        ]

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """A file to uint8 pixels [3, H, W]."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return to_pixels(image, self._backbone.image_size, self._backbone.preprocess)

    def classify(self, images: Sequence[NDArray[np.uint8]], domains: Sequence[int]) -> list[dict[str, float | int]]:
        """The most probable class of each image among those of its domain."""
        pixels_BCHW = torch.from_numpy(np.stack(images))
        ranked = self._model.rank(pixels_BCHW, [self._stacks[domain] for domain in domains], [1] * len(images))
        return [{"class_id": int(one.class_ids[0]), "probability": float(one.probabilities[0])} for one in ranked]
