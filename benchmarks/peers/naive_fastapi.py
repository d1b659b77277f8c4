"""FastAPI as it is often written: an `async def` that decodes and classifies one image and blocks the event loop."""

import os

import uvicorn
from fastapi import FastAPI, Request

from benchmarks.peers import arguments
from benchmarks.peers.plain_clip import PlainClip


def create_app() -> FastAPI:
    """The application of one worker."""
    options = arguments.read()
    clip = PlainClip(options.backbone, options.dtype, options.threads)
    app = FastAPI()

    @app.get("/health")
    async def health() -> int:
        return os.getpid()

    @app.post("/classify/{domain}")
    async def classify(domain: int, request: Request) -> dict[str, float | int]:
        return clip.classify([clip.decode(await request.body())], [domain])[0]

    return app


if __name__ == "__main__":
    options = arguments.read()
    uvicorn.run(
        "benchmarks.peers.naive_fastapi:create_app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=options.workers,
        timeout_worker_healthcheck=120,  # loading the model takes longer than the default of 5 s
        log_level="warning",
    )
