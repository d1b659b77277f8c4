"""Photographs of scikit-image as JPEG files, the same for every server."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.errors import BenchError

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
QUALITY = 90


def write_photographs(folder: Path, *, side: int | None = None) -> list[Path]:
    """Write the photographs as JPEG files.

    Args:
        folder: destination.
        side: crop the central square and scale it to this many pixels; None keeps the original 400 to 640 pixels.

    Raises:
        BenchError: scikit-image is not installed.
    """
    try:
        from skimage import data  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        msg = 'Real photographs come with scikit-image: pip install "caspl-serve[bench]"'
        raise BenchError(msg) from error
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in NAMES:
        picture = Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")
        if side is not None:
            least = min(picture.size)
            left, top = (picture.width - least) // 2, (picture.height - least) // 2
            picture = picture.crop((left, top, left + least, top + least)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
        path = folder / f"{name}-{side or 'full'}.jpg"
        picture.save(path, quality=QUALITY)
        paths.append(path)
    return paths
