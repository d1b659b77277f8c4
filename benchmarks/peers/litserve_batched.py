"""LitServe with dynamic batching and threads that decode, as in its own benchmark; files come as multipart forms."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve
from fastapi import Request

from benchmarks.peers import arguments
from benchmarks.peers.plain_clip import PlainClip

MAX_BATCH, TIMEOUT_S = 16, 0.005
Answer = dict[str, float | int]


class ClipApi(litserve.LitAPI):  # type: ignore[misc]  # installed in the peer's environment only
    """One model, many domains: rows of a batch take their own class features."""

    def __init__(self, options: arguments.Arguments, model: Callable[[str, str, int], Any] = PlainClip) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=TIMEOUT_S)
        self._options, self._model = options, model

    def setup(self, device: str) -> None:  # noqa: ARG002  LitServe's signature
        """Load the model in the worker."""
        self._clip = self._model(self._options.backbone, self._options.dtype, self._options.threads)
        self._pool = ThreadPoolExecutor(self._options.threads)

    def decode_request(self, request: Request) -> tuple[bytes, int]:
        """The file and the domain of a form, which LitServe passes for a `Request`."""
        return request["image"].file.read(), int(request["domain"])

    def predict(self, rows: Sequence[tuple[bytes, int]]) -> list[Answer]:
        """Decode all files of a batch in parallel, then run one forward."""
        images = list(self._pool.map(lambda row: self._clip.decode(row[0]), rows))
        answers: list[Answer] = self._clip.classify(images, [domain for _, domain in rows])
        return answers

    def batch(self, inputs: Sequence[tuple[bytes, int]]) -> Sequence[tuple[bytes, int]]:
        """Leave the rows as they are."""
        return inputs

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """One answer per row."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """As JSON."""
        return output


def serve(model: Callable[[str, str, int], Any] = PlainClip) -> None:
    """Run the server with a model."""
    options = arguments.read()
    server = litserve.LitServer(
        ClipApi(options, model), accelerator="cpu", timeout=60, workers_per_device=options.workers
    )
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    serve()
