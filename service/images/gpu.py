"""JPEGs decoded and resized on the device, several at once, by nvImageCodec: nvJPEG where the device is a GPU.

Threads hand over one file each and wait; what came while one batch was decoded is the next batch. A file that the
library does not decode gets no answer, and somebody else judges it. Without a GPU the library decodes with
libjpeg-turbo; that is for tests. Knows files and pixels. Does not know limits, HTTP or the model.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import dlpack

from prompted_clip.preprocess import to_pixels_on_device
from prompted_clip.threads import compute_alone
from service.errors import SettingsError

logger = logging.getLogger(__name__)

MAX_FILES: Final = 64
MAX_PIXELS: Final = 64_000_000
"""Of one batch: decoded pictures lie on the device side by side, three bytes a pixel."""
MAX_RATIO: Final = 16
"""Of a picture's short side to the backbone's. CUDA's antialiased resizing keeps its weights in shared memory; by its
formula the 48 KiB that every card has last for a ratio of 47."""
PATIENCE_S: Final = 20.0
"""Longest wait for an answer; after that somebody else decodes the file."""

Answer = Future[NDArray[np.uint8] | None]


@dataclass(frozen=True, slots=True)
class _File:
    """One that waits: its bytes, what its header says, and who wants to know."""

    data: bytes
    size: tuple[int, int]
    answer: Answer


class GpuDecoder:
    """Turns JPEG files into a backbone's pixels on one device.

    Args:
        device: where; the library's own choice of engines on a GPU.
        image_size: side of the backbone's input, in pixels.
        values: the backbone's preprocessing values.

    Raises:
        SettingsError: nvImageCodec is not installed.
    """

    def __init__(self, device: torch.device, image_size: int, values: dict[str, Any]) -> None:
        self._codec = codec = nvimgcodec()
        self._image_size = image_size
        self._values = values
        self._params = codec.DecodeParams(color_spec=codec.ColorSpec.SRGB, apply_exif_orientation=True)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._decoder = codec.Decoder(device_id=index)
            self._stream: torch.cuda.Stream | None = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        else:
            only = [codec.Backend(codec.BackendKind.CPU_ONLY)]
            self._decoder = codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=only)
            self._stream = None
        self._waiting: deque[_File] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu-decode", initializer=compute_alone)

    def decode(self, data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """One file's pixels, upright, resized and cropped; waits while others are decoded.

        Args:
            data: a whole JPEG file.
            size: width and height by its header, before it is turned upright, in pixels.

        Returns:
            uint8 [3, image_size, image_size], or None for a file that the library will not take, or finds to be of
            another size, or that is too large to be resized at once.
        """
        if min(size) > MAX_RATIO * self._image_size:
            return None
        file = _File(data, size, Future())
        self._waiting.append(file)
        self._thread.submit(self._decode_waiting)
        try:
            return file.answer.result(timeout=PATIENCE_S)
        except TimeoutError:
            logger.warning("gpu_decoder.slow", extra={"after_s": PATIENCE_S})
            return None

    def _decode_waiting(self) -> None:
        """Decode what waits, as far as it fits into one batch; nothing if an earlier turn took it along."""
        batch: list[_File] = []
        n_pixels = 0
        while self._waiting and len(batch) < MAX_FILES:
            n_pixels += self._waiting[0].size[0] * self._waiting[0].size[1]
            if batch and n_pixels > MAX_PIXELS:
                break
            batch.append(self._waiting.popleft())
        if not batch:
            return
        try:
            found = self._pixels([(file.data, file.size) for file in batch])
        except Exception:
            logger.warning("gpu_decoder.failed", exc_info=True, extra={"n_files": len(batch)})
            found = [None] * len(batch)
        for file, pixels in zip(batch, found, strict=True):
            file.answer.set_result(pixels)

    def _pixels(self, files: Sequence[tuple[bytes, tuple[int, int]]]) -> list[NDArray[np.uint8] | None]:
        """Every file's, by way of one copy to the host."""
        streams = [self._code_stream(*file) for file in files]
        taken = [stream for stream in streams if stream is not None]
        with self._on_stream():
            number = self._stream.cuda_stream if self._stream is not None else 0
            images = self._decoder.decode(taken, params=self._params, cuda_stream=number) if taken else []
            shaped = [None if image is None else self._shaped(image) for image in images]
            sound = [pixels for pixels in shaped if pixels is not None]
            on_host = iter(torch.stack(sound).cpu().numpy() if sound else ())
        answers = iter([None if pixels is None else next(on_host) for pixels in shaped])
        return [None if stream is None else next(answers) for stream in streams]

    def _code_stream(self, data: bytes, size: tuple[int, int]) -> Any | None:  # noqa: ANN401  the library has no types
        """The file as the library reads its header; None where that says something else than Pillow read."""
        try:
            stream = self._codec.CodeStream(data)
            found = (stream.width, stream.height)
        except RuntimeError:
            return None
        return stream if found == size else None

    def _shaped(self, image: Any) -> Tensor:  # noqa: ANN401  the library has no types
        rgb_hwc: Tensor = dlpack.from_dlpack(image) if self._stream is not None else torch.from_numpy(np.array(image))
        return to_pixels_on_device(rgb_hwc, self._image_size, self._values)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def nvimgcodec() -> Any:  # noqa: ANN401  the library has no types
    """The library; told to be quiet, since what it has to say is about strangers' files.

    Raises:
        SettingsError: it is not installed.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        return importlib.import_module("nvidia.nvimgcodec")  # an extra
    except ImportError as error:
        msg = 'preprocess gpu needs nvImageCodec: pip install "caspl-serve[gpu-decode]", or choose fast.'
        raise SettingsError(msg) from error
