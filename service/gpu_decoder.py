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

MAX_BATCH: Final = 64
"""Files of one batch; as many may wait by default."""

Answer = Future[NDArray[np.uint8] | None]


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
        codec = _nvimgcodec()
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
        self._waiting: deque[tuple[bytes, Answer]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu-decode", initializer=compute_alone)

    def decode(self, data: bytes) -> NDArray[np.uint8] | None:
        """One file's pixels, upright, resized and cropped; waits while others are decoded.

        Args:
            data: a whole JPEG file.

        Returns:
            uint8 [3, image_size, image_size], or None for a file that the library will not take.
        """
        answer: Answer = Future()
        self._waiting.append((data, answer))
        self._thread.submit(self._decode_waiting)
        return answer.result()

    def _decode_waiting(self) -> None:
        """Decode all that waits; nothing if an earlier turn took it along."""
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        if not batch:
            return
        try:
            found = self._pixels([data for data, _ in batch])
        except Exception:
            logger.warning("gpu_decoder.failed", exc_info=True, extra={"n_files": len(batch)})
            found = [None] * len(batch)
        for (_, answer), pixels in zip(batch, found, strict=True):
            answer.set_result(pixels)

    def _pixels(self, files: Sequence[bytes]) -> list[NDArray[np.uint8] | None]:
        """Every file's, by way of one copy to the host."""
        with self._on_stream():
            stream = self._stream.cuda_stream if self._stream is not None else 0
            images = self._decoder.decode(list(files), params=self._params, cuda_stream=stream)
            shaped = [self._shaped(image) for image in images]
            sound = [pixels for pixels in shaped if pixels is not None]
            on_host = iter(torch.stack(sound).cpu().numpy() if sound else ())
        return [None if pixels is None else next(on_host) for pixels in shaped]

    def _shaped(self, image: Any) -> Tensor | None:  # noqa: ANN401  the library has no types
        if image is None:
            return None
        rgb_hwc: Tensor = dlpack.from_dlpack(image) if self._stream is not None else torch.from_numpy(np.array(image))
        try:
            return to_pixels_on_device(rgb_hwc, self._image_size, self._values)
        except RuntimeError:  # CUDA's resizing has a largest ratio of sizes
            logger.warning("gpu_decoder.not_resized", extra={"shape": tuple(rgb_hwc.shape)})
            return None

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _nvimgcodec() -> Any:  # noqa: ANN401  the library has no types
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
