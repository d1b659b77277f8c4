"""Decoding for servers of converted models: open_clip's transform up to the pixels, without torch."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def decode(data: bytes, side: int) -> NDArray[np.uint8]:
    """A file to uint8 pixels [side, side, 3]: the shorter edge scaled to `side`, then the central square.

    The pixels equal those of open_clip's transform; the converted models divide and normalise.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = side / min(image.size)
    width, height = (side if edge == min(image.size) else int(edge * scale) for edge in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)))
