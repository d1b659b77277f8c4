"""FastAPI as it is often written: an `async def` that decodes and runs one image while everybody else waits."""

import uvicorn
from fastapi import FastAPI, Request

from benchmarks.peers import arguments
from benchmarks.peers.plain_clip import PlainClip


def main() -> None:
    """Serve."""
    asked = arguments.read()
    clip = PlainClip(asked.backbone, asked.dtype, asked.threads)
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/classify/{domain}")
    async def classify(domain: int, request: Request) -> dict[str, float | int]:
        return clip.answer([clip.decode(await request.body())], [domain])[0]

    uvicorn.run(app, host="127.0.0.1", port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()
