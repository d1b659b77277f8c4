"""Decodes still WebP files with the libwebp that Pillow has loaded.

Pillow's plugin decodes every WebP as an animation: libwebp has two canvases, Pillow makes two copies of them, and holds
the GIL for one. libwebp's simple decoder writes the same pixels into one buffer, here without the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from PIL import Image

Decode = Callable[[bytes, int, int, int, int], int | None]
"""`WebPDecodeRGBAInto`: file, its length, address and length of the buffer, bytes per row; None (NULL) if it fails."""


def _libwebp_decoder() -> Decode | None:
    """The function of the library that Pillow's module is linked to; None if that is linked statically."""
    module = find_spec("PIL._webp")
    try:
        function = ctypes.CDLL(module.origin if module else "").WebPDecodeRGBAInto  # calls release the GIL
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_DECODE: Final = _libwebp_decoder()
IS_AVAILABLE: Final = _DECODE is not None


def decode_webp(
    data: bytes, size: tuple[int, int], mode: str, info: dict[str | tuple[int, int], Any]
) -> Image.Image | None:
    """Decode a still WebP.

    Args:
        data: a file that Pillow has opened.
        size: width and height, as Pillow read it.
        mode: as Pillow read it, RGB or RGBA.
        info: metadata for the result.

    Returns:
        RGBA, or RGBX (Pillow's RGB with an unused fourth channel) for an opaque file; the image does not own its memory
        but shares it with an array. None if the file is animated or damaged, or the library is unknown; use Pillow
        then.
    """
    if _DECODE is None:
        return None
    width, height = size
    pixels_hwc = np.empty((height, width, 4), np.uint8)
    stride = pixels_hwc.strides[0]
    if not _DECODE(data, len(data), pixels_hwc.ctypes.data, pixels_hwc.nbytes, stride):
        return None
    mode = "RGBA" if mode == "RGBA" else "RGBX"
    image = Image.frombuffer(mode, size, pixels_hwc, "raw", mode, 0, 1)
    image.info = info
    return image
