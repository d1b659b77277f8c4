"""The library in a loop, without a server; prints images per second."""

import json
import time
from pathlib import Path

from benchmarks.peers import arguments
from benchmarks.peers.plain_clip import PlainClip

BATCH = 8


def main() -> None:
    """Decode and classify batches."""
    asked = arguments.read()
    clip = PlainClip(asked.backbone, asked.dtype, asked.threads)
    files = [Path(path).read_bytes() for path in asked.photographs]
    batch = [files[index % len(files)] for index in range(BATCH)]
    clip.classify([clip.decode(data) for data in batch], [0] * BATCH)
    n_images, began_s = 0, time.perf_counter()
    while (taken_s := time.perf_counter() - began_s) < asked.seconds:
        clip.classify([clip.decode(data) for data in batch], [0] * BATCH)
        n_images += BATCH
    print(json.dumps({"images_per_s": n_images / taken_s}))  # noqa: T201  read by the benchmark


if __name__ == "__main__":
    main()
