"""Ray Serve with `@serve.multiplexed` domains and `@serve.batch`: a batch has one model id.

All domains share the replica's backbone; only the class features are multiplexed.
"""

import signal
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers import arguments
from benchmarks.peers.plain_clip import N_DOMAINS, PlainClip

MAX_BATCH, TIMEOUT_S = 16, 0.005
OPTIONS = arguments.read() if __name__ == "__main__" else None


@serve.deployment(max_ongoing_requests=64)
class Clip:
    """One replica."""

    def __init__(self, backbone: str, dtype: str, threads: int) -> None:
        self._clip = PlainClip(backbone, dtype, threads)

    @serve.multiplexed(max_num_models_per_replica=N_DOMAINS)  # type: ignore[untyped-decorator]
    async def domain(self, model_id: str) -> int:
        """Load a domain: the index of its class features."""
        return int(model_id)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=TIMEOUT_S)  # type: ignore[untyped-decorator]
    async def answer(self, files: list[bytes]) -> list[dict[str, float | int]]:
        """Decode and classify images of one domain."""
        domain = await self.domain(serve.get_multiplexed_model_id())
        return self._clip.classify([self._clip.decode(data) for data in files], [domain] * len(files))

    async def __call__(self, request: Request) -> Any:  # noqa: ANN401  Ray makes it a response
        """Classify the image in the body."""
        return await self.answer(await request.body())


if __name__ == "__main__" and OPTIONS is not None:
    ray.init(num_cpus=OPTIONS.workers + 1, include_dashboard=False, logging_level="warning", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": OPTIONS.port})
    serve.run(
        Clip.options(num_replicas=OPTIONS.workers).bind(  # type: ignore[attr-defined]  # the decorator's own
            OPTIONS.backbone, OPTIONS.dtype, OPTIONS.threads
        ),
        route_prefix="/",
    )
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()
