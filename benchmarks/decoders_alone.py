"""The service's decoding by itself, in as many processes and threads as the service has for it."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from PIL import Image

from service.images.preprocessing import preprocessing


@dataclass(frozen=True)
class Work:
    """What one process decodes; the fields of `Preprocessing` ways and where the files are."""

    way: Literal["exact", "fast"]
    image_size: int
    values: dict[str, Any]
    paths: Sequence[str]
    n_threads: int


class DecodersAlone(AbstractContextManager["DecodersAlone"]):
    """Processes that decode when they are asked to, and are idle otherwise.

    Args:
        work: of each.
        n_processes: side by side.
    """

    def __init__(self, work: Work, n_processes: int) -> None:
        self._work = work
        self._n_processes = n_processes
        self._pool = ProcessPoolExecutor(n_processes, mp_context=get_context("spawn"))
        self.rate(0.1)  # so that all have begun

    def rate(self, duration_s: float) -> float:
        """Images per second of all of them together."""
        given = [self._work] * self._n_processes, [duration_s] * self._n_processes
        return sum(self._pool.map(decode_for, *given))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        self._pool.shutdown()


def decode_for(work: Work, duration_s: float) -> float:
    """Images per second of one process."""
    way = preprocessing(work.way, work.image_size, work.values)
    files = [Path(path).read_bytes() for path in work.paths]
    began_s = time.perf_counter()

    def decode(first: int) -> int:
        way.prepare_thread()
        n_images = 0
        while time.perf_counter() - began_s < duration_s:
            data = files[(first + n_images) % len(files)]
            with Image.open(BytesIO(data)) as image:
                way.to_pixels(way.read(image, data))
            n_images += 1
        return n_images

    with ThreadPoolExecutor(work.n_threads) as threads:
        n_images = sum(threads.map(decode, range(work.n_threads)))
    return n_images / (time.perf_counter() - began_s)
