import io

import pytest
from PIL import Image, PngImagePlugin

from service.errors import ImageRejectedError
from service.images.decoder import ImageLimits, open_rgb
from service.images.headers import declared_size, png_header
from service.images.preprocessing import Exact
from tests.service.fakes import PREPROCESS

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=10_000, max_side_px=200, max_aspect=20.0, max_scans=100)


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
    assert declared_size("PNG", data, max_scans=1) == (8, 6)
    picture, notes = open_rgb(data, LIMITS, Exact(16, PREPROCESS).read)
    assert (picture.size, notes) == ((8, 6), ())


@pytest.mark.parametrize("comment", ["", "x" * 10_000], ids=["at the start", "behind a long comment"])
def test_an_animated_png_is_refused_wherever_it_says_so(comment):
    with pytest.raises(ImageRejectedError) as refused:
        open_rgb(png(2, comment), LIMITS, Exact(16, PREPROCESS).read)
    assert refused.value.code == "image_animated"


@pytest.mark.parametrize("length", [8, 20, 32])
def test_a_png_that_ends_before_its_size_is_refused(length):
    with pytest.raises(ImageRejectedError, match="no header"):
        png_header(png(1)[:length])
