"""Measures one running, idle server with requests of growing size, one at a time.

The response has the time of each stage (`timing_ms`), so a request with as many images as a batch gives that batch's
time, and what remains of a request with one image is HTTP. A server that runs several batches concurrently divides the
images of a request among them.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from caspl.capacity.measurements import BatchTime, Measurements
from caspl.client import Client
from caspl.errors import MeasurementsError
from caspl.requests import Operation, Request, accepted

ROUNDS: Final = 15
WARM_UP: Final = 2
"""Rounds that are not counted."""
TIMEOUT_MS: Final = 30_000

Timing = dict[str, float]
"""Milliseconds of a request: `decode`, `queue`, `device`, `total`, and `client` as the client sees it."""


def measure(
    client: Client,
    domain: str,
    pictures: Sequence[Path],
    *,
    rounds: int = ROUNDS,
    on_round: Callable[[int], None] = lambda _: None,
) -> Measurements:
    """Measure a server that has no other load.

    Args:
        client: of the server; without retries.
        domain: a live domain.
        pictures: typical images, at least one; sent in turn.
        rounds: requests of each size; their median counts.
        on_round: called after each round.

    Raises:
        CasplError: the server cannot be reached or refuses a request; an image has an error.
        OSError: a picture cannot be read.
    """
    info = client.run(_info())
    if not (batches := info.get("batches")):
        raise MeasurementsError("The server is older than this command: GET /info has no `batches`.")
    backbone, n_concurrent = info["backbone"], batches["n_concurrent"]
    data = [path.read_bytes() for path in pictures]
    n_most = max(1, min(batches["max_rows"], info["limits"]["max_images"] // n_concurrent))
    rows = [*itertools.takewhile(lambda size: size < n_most, (2**power for power in range(20))), n_most]
    sizes = sorted({1, *(n_concurrent * size for size in rows)})
    found: dict[int, list[Timing]] = {size: [] for size in sizes}
    images = itertools.cycle(data)
    for index in range(WARM_UP + rounds):
        for size, timings in found.items():
            timing = client.run(_classify(domain, [next(images) for _ in range(size)]))
            if index >= WARM_UP:
                timings.append(timing)
        on_round(index)
    one = found[1]
    mean_kib = sum(map(len, data)) / len(data) / 1024
    return Measurements(
        backbone=backbone["arch"],
        device=backbone["device"],
        dtype=backbone["dtype"],
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        pictures=f"{len(data)} of {mean_kib:.0f} KiB on average",
        max_rows=batches["max_rows"],
        n_concurrent=n_concurrent,
        n_pipelined=batches["n_pipelined"],
        n_cores=batches["n_cores"],
        shares_cores=backbone["device"] == "cpu",
        batches=tuple(
            BatchTime(rows=size // n_concurrent, seconds=_seconds(timings, _device))
            for size, timings in found.items()
            if size >= n_concurrent
        ),
        alone_s=_seconds(one, _device),
        decode_s=_seconds(one, lambda timing: timing["decode"]),
        request_s=_seconds(
            one, lambda timing: timing["total"] - sum(timing[one] for one in ("decode", "queue", "device"))
        ),
        network_s=_seconds(one, lambda timing: timing["client"] - timing["total"]),
    )


def _device(timing: Timing) -> float:
    return timing["device"]


def _seconds(timings: Sequence[Timing], part: Callable[[Timing], float]) -> float:
    """Median of a part of each timing."""
    return max(0.0, round(statistics.median(map(part, timings)) / 1000, 7))


def _info() -> Operation[dict[str, Any]]:
    return accepted((yield Request("GET", "/info")), "backbone")


def _classify(domain: str, images: Sequence[bytes]) -> Operation[Timing]:
    """Classify the images in one request; returns its timing.

    Raises:
        MeasurementsError: an image has an error.
    """
    files = [("images", image) for image in images]
    params = {"top_k": 1, "timeout_ms": TIMEOUT_MS}
    began_s = time.perf_counter()
    response = yield Request("POST", f"/classify/{quote(domain, safe='')}", {"files": files, "params": params})
    taken_ms = 1000 * (time.perf_counter() - began_s)
    body = accepted(response, "results")
    if errors := [result["error"] for result in body["results"] if result.get("error")]:
        raise MeasurementsError(f"An image was not classified: {errors[0].get('detail') or errors[0].get('title')}")
    return {**body["timing_ms"], "client": taken_ms}
