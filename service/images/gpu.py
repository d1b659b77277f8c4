"""Decodes and resizes JPEGs on the device in batches, with nvImageCodec (nvJPEG on a GPU).

Threads submit one file each and wait; files that arrive while a batch is decoded form the next batch. Without a GPU the
library decodes with libjpeg-turbo, as in the tests.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import dlpack

from prompted_clip.preprocess import to_pixels_on_device
from service.errors import SettingsError
from service.process import use_one_torch_thread

logger = logging.getLogger(__name__)

MAX_BATCH_FILES: Final = 64
MAX_BATCH_PIXELS: Final = 64_000_000
"""Bounds device memory: all decoded images of a batch, three bytes per pixel."""
MAX_RATIO: Final = 16
"""Of an image's short side to the backbone's. CUDA's antialiased resizing keeps its weights in shared memory; the
48 KiB of every card suffice for a ratio of 47."""
TIMEOUT_S: Final = 20.0

Size = tuple[int, int]
"""Width and height in the header, before EXIF rotation, in pixels."""


@dataclass(frozen=True, slots=True)
class _Job:
    data: bytes
    size: Size
    result: Future[NDArray[np.uint8] | None] = field(default_factory=Future)


class GpuDecoder:
    """Decodes JPEG files on one device to `image_size` pixels a side, with the backbone's preprocessing `values`.

    Raises:
        SettingsError: nvImageCodec is not installed.
    """

    def __init__(self, device: torch.device, image_size: int, values: dict[str, Any]) -> None:
        self._codec = codec = nvimgcodec()
        self._image_size = image_size
        self._values = values
        self._params = codec.DecodeParams(color_spec=codec.ColorSpec.SRGB, apply_exif_orientation=True)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._decoder = codec.Decoder(device_id=self._stream.device.index)
        else:
            backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
            self._decoder = codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends)
        self._queue: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu-decode", initializer=use_one_torch_thread)

    def decode(self, data: bytes, size: Size) -> NDArray[np.uint8] | None:
        """Decode, rotate, resize and crop one file; blocks until its batch is done.

        Args:
            data: a whole JPEG file.
            size: as Pillow read it.

        Returns:
            uint8 [3, image_size, image_size]. None if the file is too large to be resized in one step, the library
            fails, reads another size, or takes more than 20 s; use another decoder then.
        """
        if min(size) > MAX_RATIO * self._image_size:
            return None
        job = _Job(data, size)
        self._queue.append(job)
        self._thread.submit(self._run_batch)
        try:
            return job.result.result(timeout=TIMEOUT_S)
        except TimeoutError:
            logger.warning("gpu_decoder.timeout", extra={"after_s": TIMEOUT_S})
            return None

    def _run_batch(self) -> None:
        """Decode a batch of queued files; no-op if an earlier batch has emptied the queue."""
        batch: list[_Job] = []
        n_pixels = 0
        while self._queue and len(batch) < MAX_BATCH_FILES:
            n_pixels += self._queue[0].size[0] * self._queue[0].size[1]
            if batch and n_pixels > MAX_BATCH_PIXELS:
                break
            batch.append(self._queue.popleft())
        if not batch:
            return
        try:
            results = self._pixels([(job.data, job.size) for job in batch])
        except Exception:
            logger.warning("gpu_decoder.failed", exc_info=True, extra={"n_files": len(batch)})
            results = [None] * len(batch)
        for job, pixels in zip(batch, results, strict=True):
            job.result.set_result(pixels)

    def _pixels(self, files: Sequence[tuple[bytes, Size]]) -> list[NDArray[np.uint8] | None]:
        """The pixels of each file, with one D2H copy for all."""
        code_streams = {row: found for row, file in enumerate(files) if (found := self._code_stream(*file)) is not None}
        pixels: dict[int, Tensor] = {}
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            number = self._stream.cuda_stream if self._stream else 0
            inputs = list(code_streams.values())
            images = self._decoder.decode(inputs, params=self._params, cuda_stream=number) if inputs else []
            for row, image in zip(code_streams, images, strict=True):
                if image is not None:
                    rgb_hwc = dlpack.from_dlpack(image) if self._stream else torch.from_numpy(np.array(image))
                    pixels[row] = to_pixels_on_device(rgb_hwc, self._image_size, self._values)
            on_host = torch.stack(list(pixels.values())).cpu().numpy() if pixels else ()
        results = dict(zip(pixels, on_host, strict=True))
        return [results.get(row) for row in range(len(files))]

    def _code_stream(self, data: bytes, size: Size) -> Any | None:  # noqa: ANN401  the library has no types
        """The library's object for a file; None if it fails or reads another size than Pillow."""
        try:
            stream = self._codec.CodeStream(data)
            found = (stream.width, stream.height)
        except RuntimeError:
            return None
        return stream if found == size else None


def nvimgcodec() -> Any:  # noqa: ANN401  the library has no types
    """Import nvImageCodec without its messages about uploaded files.

    Raises:
        SettingsError: it is not installed.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        return importlib.import_module("nvidia.nvimgcodec")
    except ImportError as error:
        msg = 'preprocess=gpu needs nvImageCodec: pip install "caspl-serve[gpu-decode]", or use preprocess=fast.'
        raise SettingsError(msg) from error
