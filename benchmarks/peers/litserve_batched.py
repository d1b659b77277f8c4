"""LitServe with dynamic batching and a pool that decodes, as in its own benchmark; the domain travels in the body."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve

from benchmarks.peers import arguments
from benchmarks.peers.plain_clip import PlainClip

MAX_BATCH, TIMEOUT_S = 16, 0.005
Row = tuple[Any, int]


class ClipApi(litserve.LitAPI):  # type: ignore[misc]  # untyped, and in the peer's environment only
    """One model, many domains: rows of a batch take their own class features."""

    def __init__(self, asked: arguments.Arguments) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=TIMEOUT_S)
        self._asked = asked

    def setup(self, device: str) -> None:  # noqa: ARG002  the signature is LitServe's
        """Load the model in the worker."""
        self._clip = PlainClip(self._asked.backbone, self._asked.dtype, self._asked.threads)
        self._pool = ThreadPoolExecutor(self._asked.threads)

    def decode_request(self, request: dict[str, Any]) -> tuple[str, int]:
        """The picture as it came, and the domain."""
        return request["image"], request["domain"]

    def batch(self, inputs: Sequence[tuple[str, int]]) -> list[Row]:
        """Decode all pictures of a batch at the same time."""
        images = self._pool.map(lambda row: self._clip.decode(base64.b64decode(row[0])), inputs)
        return [(image, domain) for image, (_, domain) in zip(images, inputs, strict=True)]

    def predict(self, rows: Sequence[Row]) -> list[dict[str, float | int]]:
        """One forward for the batch."""
        return self._clip.answer([image for image, _ in rows], [domain for _, domain in rows])

    def unbatch(self, output: list[dict[str, float | int]]) -> list[dict[str, float | int]]:
        """One answer per row."""
        return output

    def encode_response(self, output: dict[str, float | int]) -> dict[str, float | int]:
        """As JSON."""
        return output


if __name__ == "__main__":
    options = arguments.read()
    server = litserve.LitServer(ClipApi(options), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")
