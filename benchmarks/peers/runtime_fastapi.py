"""FastAPI in front of an inference runtime: files are decoded on threads, and the event loop waits for the runtime."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from numpy.typing import NDArray

from benchmarks.peers import arguments
from benchmarks.peers.pixels import decode


class Runtime(Protocol):
    """A compiled model.

    Attributes:
        side: height and width of its input images.
    """

    side: int

    def submit(self, pixels_HWC: NDArray[np.uint8], domain: int) -> Future[NDArray[np.float32]]:
        """Begin to classify an image; the future has the probabilities of its domain's classes."""


def application(runtime: Runtime, threads: int) -> FastAPI:
    """The application of one worker."""
    app = FastAPI()
    decoders = ThreadPoolExecutor(threads)

    @app.get("/health")
    async def health() -> int:
        return os.getpid()

    @app.post("/classify/{domain}")
    async def classify(domain: int, request: Request) -> dict[str, float | int]:
        data = await request.body()
        pixels_HWC = await asyncio.get_running_loop().run_in_executor(decoders, decode, data, runtime.side)
        probabilities_K = await asyncio.wrap_future(runtime.submit(pixels_HWC, domain))
        best = int(probabilities_K.argmax())
        return {"class_id": best, "probability": float(probabilities_K[best])}

    return app


def main(module: str, convert: Callable[[arguments.Arguments], None]) -> None:
    """Convert the model, or serve it with the `create_app` of a module."""
    options = arguments.read()
    if options.convert:
        convert(options)
    else:
        serve(module, options)


def serve(module: str, options: arguments.Arguments) -> None:
    """Run uvicorn, which calls the `create_app` of a module in every worker."""
    uvicorn.run(
        f"{module}:create_app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=options.workers,
        timeout_worker_healthcheck=120,  # loading the model takes longer than the default of 5 s
        log_level="warning",
    )
