"""FastAPI as it is often written: an `async def` that decodes and classifies one image and blocks the event loop."""

import os

from fastapi import FastAPI, Request

from benchmarks.peers import arguments
from benchmarks.peers.plain_clip import PlainClip
from benchmarks.peers.runtime_fastapi import serve


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
    serve("benchmarks.peers.naive_fastapi", arguments.read())
