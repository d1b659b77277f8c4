"""Image inputs: file paths, encoded bytes, PIL images, or uint8 arrays [H, W, 3] or [H, W]."""

import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from caspl.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

ImageInput: TypeAlias = "str | PathLike[str] | bytes | Image | NDArray[np.uint8]"
ImagesInput: TypeAlias = "ImageInput | Sequence[ImageInput]"


def as_list(images: ImagesInput) -> list[ImageInput]:
    """A list of images; one image is a list of one, and an array [N, H, W, 3] a list of N."""
    is_one = isinstance(images, str | PathLike | bytes) or not hasattr(images, "__len__")
    is_one = is_one or getattr(images, "ndim", 4) < 4
    return cast("list[ImageInput]", [images] if is_one else list(cast("Sequence[ImageInput]", images)))


def open_image(image: ImageInput) -> "Image":
    """Open an image; files are decoded later, when their pixels are read.

    Raises:
        OSError: the file cannot be read.
        ImageError: not a format that Pillow supports.
        TypeError: not an image, or an array that is not uint8 of a known shape.
    """
    from PIL import Image  # noqa: PLC0415  sending files needs no Pillow

    from prompted_clip.preprocess import without_metadata  # noqa: PLC0415

    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, str | PathLike | bytes):
        if image.dtype != "uint8":
            raise TypeError(f"Image arrays must be uint8, not {image.dtype}.")
        return Image.fromarray(image)
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    try:
        return Image.open(io.BytesIO(without_metadata(data)))
    except Exception as error:
        raise undecodable() from error


def undecodable() -> ImageError:
    """The error for bytes that are not an image that Pillow can decode."""
    return ImageError("Invalid image", "The file is damaged or its format is unknown.", code="image_undecodable")


def n_bytes(image: ImageInput) -> int:
    """Upper bound of what `encode` returns, in bytes, without reading a file.

    Raises:
        OSError: the file does not exist or may not be read.
    """
    if isinstance(image, str | PathLike):
        return Path(image).stat().st_size
    if isinstance(image, bytes):
        return len(image)
    width, height = open_image(image).size
    return 4 * width * height + 4096


def encode(image: ImageInput) -> tuple[str, bytes]:
    """File name and encoded bytes of an image for an upload; pixels become a PNG.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return "image", image
    if isinstance(image, str | PathLike):
        return Path(image).name, Path(image).read_bytes()
    from prompted_clip.preprocess import upright_rgb  # noqa: PLC0415  sending files needs no Pillow

    file = io.BytesIO()
    upright_rgb(open_image(image)).save(file, "PNG", compress_level=1)
    return "image.png", file.getvalue()
