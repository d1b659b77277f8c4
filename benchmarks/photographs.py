"""Photographs to send: scikit-image's own pictures as JPEG files, so that every server gets the same real bytes."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.errors import BenchError

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
QUALITY = 90


def write_photographs(folder: Path, *, side: int | None = None) -> list[Path]:
    """Write the pictures as JPEG files.

    Args:
        folder: where to.
        side: crop to the middle square and scale to this many pixels, as a client does that knows the model; None
            leaves them as they are, 400 to 640 pixels wide.

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
