"""ONNX Runtime behind FastAPI: an exported model, one call at a time on all threads of the worker."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnxruntime
from fastapi import FastAPI
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_dynamic

from benchmarks.peers import arguments
from benchmarks.peers.runtime_fastapi import application, main


class OnnxRuntime:
    """A session."""

    def __init__(self, options: arguments.Arguments) -> None:
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        path = str(options.model / "model.onnx")
        self._session = onnxruntime.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]
        self.side = int(self._session.get_inputs()[0].shape[1])
        self._caller = ThreadPoolExecutor(1)  # a call uses all threads

    def submit(self, pixels_HWC: NDArray[np.uint8], domain: int) -> Future[NDArray[np.float32]]:
        """Begin to classify an image."""
        return self._caller.submit(self._run, pixels_HWC, domain)

    def _run(self, pixels_HWC: NDArray[np.uint8], domain: int) -> NDArray[np.float32]:
        inputs = dict(zip(self._names, (pixels_HWC[None], np.array([domain])), strict=True))
        probabilities_K: NDArray[np.float32] = self._session.run(None, inputs)[0][0]
        return probabilities_K


def convert(options: arguments.Arguments) -> None:
    """Write the model as ONNX; int8 is dynamic quantisation, which ONNX Runtime recommends for transformers."""
    import torch  # noqa: PLC0415  not needed to serve

    from benchmarks.peers.classifier import Classifier  # noqa: PLC0415

    classifier = Classifier(options.backbone, options.threads)
    path = options.model / ("float32.onnx" if options.dtype == "int8" else "model.onnx")
    torch.onnx.export(classifier, classifier.example(), path, dynamo=True, external_data=False)
    if options.dtype == "int8":
        quantize_dynamic(path, options.model / "model.onnx", per_channel=True)


def create_app() -> FastAPI:
    """The application of one worker."""
    options = arguments.read()
    return application(OnnxRuntime(options), options.threads)


if __name__ == "__main__":
    main("benchmarks.peers.onnx_fastapi", convert)
