"""Ray Serve with `@serve.multiplexed` domains and `@serve.batch`: Ray gives one batch one model id.

Every domain shares the replica's backbone and only its class features are multiplexed, which is kinder than a model
each.
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
ASKED = arguments.read() if __name__ == "__main__" else None


@serve.deployment(max_ongoing_requests=64)
class Clip:
    """One replica."""

    def __init__(self, backbone: str, dtype: str, threads: int) -> None:
        self._clip = PlainClip(backbone, dtype, threads)

    @serve.multiplexed(max_num_models_per_replica=N_DOMAINS)  # type: ignore[untyped-decorator]
    async def domain(self, model_id: str) -> int:
        """What is loaded for a domain: which class features to use."""
        return int(model_id)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=TIMEOUT_S)  # type: ignore[untyped-decorator]
    async def answer(self, files: list[bytes]) -> list[dict[str, float | int]]:
        """Decode and answer rows of one domain."""
        domain = await self.domain(serve.get_multiplexed_model_id())
        return self._clip.answer([self._clip.decode(data) for data in files], [domain] * len(files))

    async def __call__(self, request: Request) -> Any:  # noqa: ANN401  Ray makes a response of it
        """One request: an image, its domain in Ray's own header."""
        return await self.answer(await request.body())


if __name__ == "__main__" and ASKED is not None:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": ASKED.port})
    serve.run(
        Clip.bind(  # type: ignore[attr-defined]  # the decorator's own
            ASKED.backbone, ASKED.dtype, ASKED.threads
        ),
        route_prefix="/",
    )
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()
