"""Triton's model: files are decoded on threads, and all rows of a batch run in one forward."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from benchmarks.peers.plain_clip import PlainClip


class TritonPythonModel:
    """One instance; the server calls its methods by name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        given = {name: one["string_value"] for name, one in json.loads(args["model_config"])["parameters"].items()}
        threads = int(given["threads"])
        self._clip = PlainClip(given["backbone"], given["dtype"], threads)
        self._pool = ThreadPoolExecutor(threads)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Classify the images of all requests, one each."""
        files, domains = (
            [triton.get_input_tensor_by_name(request, name).as_numpy()[0, 0] for request in requests]
            for name in ("image", "domain")
        )
        images = list(self._pool.map(self._clip.decode, files))
        answers = self._clip.classify(images, [int(domain) for domain in domains])
        return [_response(answer) for answer in answers]


def _response(answer: dict[str, float | int]) -> Any:  # noqa: ANN401  Triton's class
    class_id = triton.Tensor("class_id", np.array([[answer["class_id"]]], np.int32))
    probability = triton.Tensor("probability", np.array([[answer["probability"]]], np.float32))
    return triton.InferenceResponse([class_id, probability])
