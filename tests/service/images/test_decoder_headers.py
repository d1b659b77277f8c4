import io
import resource

import pytest
from PIL import Image, PngImagePlugin

from prompted_clip.preprocess import upright_rgb
from service.errors import ImageRejectedError
from service.images.decoder import open_image
from service.images.headers import read_header
from service.settings import Settings

LIMITS = Settings(
    max_image_bytes=1_000_000,
    max_image_pixels=10_000,
    max_image_side_px=200,
    max_image_aspect=20.0,
    max_image_scans=100,
)


def png(n_frames, comment=""):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")][:n_frames]
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", comment)
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=n_frames > 1, append_images=frames[1:], pnginfo=info)
    return file.getvalue()


def test_a_png_that_only_mentions_the_animation_chunk_is_served():
    data = png(1, comment="an acTL chunk makes a PNG an animation")
    assert data.index(b"acTL") < data.index(b"IDAT")
    picture, notes = open_image(data, LIMITS, lambda image, _: upright_rgb(image))
    assert (picture.size, notes) == ((8, 6), ())


@pytest.mark.parametrize("comment", ["", "x" * 10_000], ids=["at the start", "behind a long comment"])
def test_an_animated_png_is_refused_wherever_it_says_so(comment):
    with pytest.raises(ImageRejectedError) as refused:
        open_image(png(2, comment), LIMITS, lambda image, _: upright_rgb(image))
    assert refused.value.code == "image_animated"


@pytest.mark.parametrize("junk", [b"\xff", b"\x00", b"\xff\x00"])
def test_bytes_between_header_segments_are_bounded(junk):
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG")
    data = file.getvalue()
    assert read_header(data[:20] + junk * 100 + data[20:], 10**6).size == (8, 6)
    with pytest.raises(ImageRejectedError, match="damaged"):
        read_header(data[:20] + junk * 20_000 + data[20:], 10**6)


def test_a_webp_that_declares_a_huge_canvas_is_refused_by_its_header():
    file = io.BytesIO()
    Image.new("RGBA", (8, 6), (1, 2, 3, 4)).save(file, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    data = bytearray(file.getvalue())
    assert data[12:16] == b"VP8X"
    data[24:30] = (16_000).to_bytes(3, "little") * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageRejectedError):
        open_image(bytes(data), LIMITS, lambda image, _: upright_rgb(image))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
