"""OpenVINO behind FastAPI: a converted model, the throughput hint and an asynchronous queue of inference requests.

Its documentation recommends hints over low-level settings, and on CPUs streams of single images over batches. In
alternation with ViT-B-16 in float32, four callers on two cores, the latency hint was slower and full batches of two or
four images were not faster than the spread.
"""

import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from benchmarks.peers import arguments
from benchmarks.peers.pixels import decode
from benchmarks.peers.runtime_fastapi import application, main
from prompted_clip.openvino_runtime import import_openvino

ov = import_openvino()  # before nncf, which imports it with its usage statistics

N_REQUESTS = 64
"""Requests in flight; more than the streams, so that submitting one never blocks the event loop."""
PRECISION = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16, "int8": ov.Type.f32}
"""Type of what is not quantised."""


class OpenVino:
    """A compiled model."""

    def __init__(self, options: arguments.Arguments) -> None:
        config = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": options.threads,
            "INFERENCE_PRECISION_HINT": PRECISION[options.dtype],
        }
        compiled = ov.compile_model(options.model / "model.xml", "CPU", config)
        self.side = int(compiled.input(0).shape[1])
        self._queue = ov.AsyncInferQueue(compiled, N_REQUESTS)
        self._queue.set_callback(_finish)

    def submit(self, pixels_HWC: NDArray[np.uint8], domain: int) -> Future[NDArray[np.float32]]:
        """Begin to classify an image."""
        future: Future[NDArray[np.float32]] = Future()
        self._queue.start_async({0: pixels_HWC[None], 1: np.array([domain])}, future)
        return future


def _finish(request: Any, future: Future[NDArray[np.float32]]) -> None:  # noqa: ANN401  the library has no types
    future.set_result(request.get_output_tensor().data[0].copy())


def convert(options: arguments.Arguments) -> None:
    """Write the model as OpenVINO's IR; int8 is calibrated on the photographs by NNCF."""
    import nncf  # noqa: PLC0415  not needed to serve
    import torch  # noqa: PLC0415

    from benchmarks.peers.classifier import Classifier  # noqa: PLC0415

    if options.dtype == "bfloat16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        sys.exit("this processor has no bfloat16")
    classifier = Classifier(options.backbone, options.threads)
    example = classifier.example()
    with torch.no_grad():
        model = ov.convert_model(classifier, example_input=example, input=[list(one.shape) for one in example])
    if options.dtype == "int8":
        files = sorted(options.photographs.glob("*.jpg"))
        rows = [(decode(path.read_bytes(), classifier.side)[None], np.array([0])) for path in files]
        model = nncf.quantize(model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    ov.save_model(model, Path(options.model) / "model.xml", compress_to_fp16=False)


def create_app() -> FastAPI:
    """The application of one worker."""
    options = arguments.read()
    return application(OpenVino(options), options.threads)


if __name__ == "__main__":
    main("benchmarks.peers.openvino_fastapi", convert)
