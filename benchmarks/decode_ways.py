"""Ways from a JPEG file to a backbone's pixels, and the files they are timed on.

Every way decodes, resizes with antialiasing to the short side, crops the middle and gives uint8 [3, side, side]. The
service's own ways also check the limits and read the header, as they do for a stranger's file. Decoders that are not
installed are left out. The GPU's is none of them: here processor time is measured, and it takes batches.
"""

import io
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.errors import BenchError
from prompted_clip.preprocess import to_pixels, to_pixels_fast
from service.images.decoder import ImageLimits, open_rgb
from service.images.preprocessing import Preprocessing, preprocessing

Pixels = NDArray[np.uint8]
Way = Callable[[bytes], Pixels]

CLIP: Final[dict[str, Any]] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SIZES: Final = ((224, 224), (500, 375), (1920, 1080), (4000, 3000))
PHOTOGRAPHS: Final = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
QUALITY: Final = 90
REFERENCE: Final = "Pillow, open_clip's steps"
LIMITS: Final = ImageLimits(max_bytes=2**27, max_pixels=25_000_000, max_side_px=16_384, max_aspect=20.0, max_scans=100)


def photographs() -> list[Image.Image]:
    """scikit-image's own colour pictures, 300 to 1,400 pixels high.

    Raises:
        BenchError: scikit-image is not installed.
    """
    try:
        from skimage import data  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        msg = 'Real photographs come with scikit-image: pip install "caspl-serve[bench]"'
        raise BenchError(msg) from error
    return [Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB") for name in PHOTOGRAPHS]


def mosaic(size: tuple[int, int]) -> Image.Image:
    """All photographs in one picture of this size, three beside each other in two rows."""
    width, height = size
    picture = Image.new("RGB", size)
    for index, photograph in enumerate(photographs()):
        left, right = (width * (index % 3 + step) // 3 for step in (0, 1))
        top, bottom = (height * (index // 3 + step) // 2 for step in (0, 1))
        picture.paste(photograph.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
    return picture


def as_jpeg(picture: Image.Image) -> bytes:
    """The bytes of a JPEG file as cameras and web sites make them: 4:2:0, baseline."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def ways(side: int, values: dict[str, Any]) -> dict[str, Way]:
    """Every way that can run here, by name; the first is what the others are compared with.

    Args:
        side: of the backbone's input, in pixels.
        values: the backbone's preprocessing values.
    """
    finish = {
        "Pillow": lambda rgb: to_pixels(Image.fromarray(rgb), side, values),
        "torch": lambda rgb: to_pixels_fast(rgb, side, values),
    }
    found: dict[str, Way] = {
        REFERENCE: lambda data: to_pixels(_pillow(data), side, values),
        "service, exact": partial(_served, preprocessing("exact", side, values)),
        "service, fast": partial(_served, preprocessing("fast", side, values)),
        "Pillow draft ≥ 1 x, Pillow resize": lambda data: to_pixels(_pillow(data, side), side, values),
        "Pillow draft ≥ 2 x, Pillow resize": lambda data: to_pixels(_pillow(data, 2 * side), side, values),
        "Pillow draft ≥ 2 x, torch resize": lambda data: finish["torch"](np.array(_pillow(data, 2 * side))),
        "simplejpeg, Pillow resize": lambda data: finish["Pillow"](_simplejpeg(data)),
        "simplejpeg, torch resize": lambda data: finish["torch"](_simplejpeg(data)),
        "simplejpeg ≥ 1 x, torch resize": lambda data: finish["torch"](_simplejpeg(data, side)),
        "simplejpeg ≥ 2 x, torch resize": lambda data: finish["torch"](_simplejpeg(data, 2 * side)),
    }
    if find_spec("torchvision"):
        found["torchvision decode_jpeg, torch resize"] = lambda data: finish["torch"](_torchvision(data))
    if find_spec("cv2"):
        found["OpenCV imdecode, INTER_AREA"] = lambda data: _opencv(data, side)
    return found


def _served(way: Preprocessing, data: bytes) -> Pixels:
    picture, _ = open_rgb(data, LIMITS, way.read)
    return way.to_pixels(picture)


def _pillow(data: bytes, min_side_px: int = 0) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if min_side_px:
            image.draft("RGB", (min_side_px, min_side_px))
        image.load()
        return image


def _simplejpeg(data: bytes, min_side_px: int = 0) -> Pixels:
    rgb_HWC: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side_px, min_width=min_side_px)
    return rgb_HWC


def _torchvision(data: bytes) -> Pixels:
    from torchvision.io import decode_jpeg  # noqa: PLC0415  an extra

    decoded_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return np.asarray(decoded_CHW.permute(1, 2, 0).numpy())


def _opencv(data: bytes, side: int) -> Pixels:
    import cv2  # noqa: PLC0415  not among our dependencies

    rgb_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = rgb_HWC.shape[:2]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    resized = cv2.resize(rgb_HWC, size, interpolation=cv2.INTER_AREA)
    left, top = (round((length - side) / 2) for length in size)
    return np.ascontiguousarray(resized[top : top + side, left : left + side].transpose(2, 0, 1))
