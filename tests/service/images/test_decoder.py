"""Hostile and unusual files: each is decoded or refused with its code."""

import asyncio
import io
import struct
import time
import traceback
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from prompted_clip.preprocess import upright_rgb
from service.errors import ImageFormatError, ImageRejectedError, ImageTooLargeError, OverloadedError
from service.images.decoder import Decoder, open_image
from service.images.headers import sniff
from service.images.preprocessing import Exact, Fast
from service.settings import Settings
from tests.service.fakes import PREPROCESS, picture

WAYS = (Exact(16, PREPROCESS), Fast(16, PREPROCESS))
LIMITS = Settings(
    max_image_bytes=2_000_000,
    max_image_pixels=25_000_000,
    max_image_side_px=16_384,
    max_image_aspect=20,
    max_image_scans=100,
)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width, height, body=b"\0"):
    """A PNG that declares any size over a few bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def jpeg_of_size(width, height):
    """A JPEG whose frame header lies about its size."""
    data = bytearray(picture(kind="JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def scan_bomb(n_scans):
    """A progressive JPEG whose last scan is repeated."""
    data = encode(noise(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * n_scans + data[-2:]


def noise(width, height, mode="RGB"):
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(rng.integers(0, 256, (height, width, bands), dtype=np.uint8).squeeze(), mode=None).convert(
        mode
    )


def animated(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def text_bomb():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 40_000_000, zip=True)
    return encode(Image.new("RGB", (8, 8)), pnginfo=info)


def opened(data):
    """The picture of its own size, with the notes."""
    return open_image(data, LIMITS, lambda image, _: upright_rgb(image))


def refusal(data):
    """The error class and code of a refused file, the same with `exact` and `fast`."""
    kinds = set()
    for way in WAYS:
        with pytest.raises(ImageRejectedError) as refused:
            open_image(data, LIMITS, way.decode)
        assert not any(mark in str(refused.value) for mark in ("0x", "BytesIO", "Traceback"))
        kinds.add((type(refused.value), refused.value.code))
    (kind,) = kinds
    return kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 20), (7, 3), (64, 48), (300, 200)])
def test_the_three_formats_come_back_as_rgb_of_their_size(kind, size):
    image, notes = opened(picture("blue", size, kind))
    assert (image.mode, image.size, notes) == ("RGB", size, ())


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PDF", "EPS", "JPEG2000"])
def test_other_formats_are_never_parsed(kind):
    assert refusal(encode(Image.new("RGB", (16, 16)), kind)) in {
        (ImageFormatError, "image_format"),
        (ImageRejectedError, "image_undecodable"),  # TGA starts with zeros
    }


@pytest.mark.parametrize(
    "data",
    [b"<svg/>" + b" " * 20, b"%PDF-1.7 and more", b"<!doctype html><html>", b"\x00\x00\x00\x18ftypheic" + bytes(20),
     b"RIFF\x00\x00\x00\x00WAVEfmt ", b"SIMPLE  =                    T", b"PK\x03\x04 and some more bytes"],
)  # fmt: skip
def test_other_files_are_a_format_error(data):
    assert refusal(data) == (ImageFormatError, "image_format")


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", bytes(500), b"\x89PNG\r\n"])
def test_empty_and_tiny_files_are_undecodable(data):
    assert refusal(data) == (ImageRejectedError, "image_undecodable")


@pytest.mark.parametrize(
    "bomb",
    [
        *(png_of_size(*size) for size in ((50_000, 50_000), (30_000, 1_000), (5_001, 5_000), (2**31 - 1, 2**31 - 1))),
        *(jpeg_of_size(*size) for size in ((50_000, 50_000), (30_000, 1_000), (5_001, 5_000))),
    ],
    ids=range(7),
)
def test_a_decompression_bomb_is_refused_by_its_header(bomb):
    started_s = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(bomb) == (ImageTooLargeError, "image_pixels")
    assert time.perf_counter() - started_s < 0.2


@pytest.mark.parametrize("size", [(500, 1), (1, 21), (10_000, 400)])
def test_a_long_thin_image_is_refused(size):
    assert refusal(png_of_size(*size)) == (ImageRejectedError, "image_aspect")


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size):
    assert refusal(png_of_size(*size))[0] is ImageRejectedError


def test_too_many_bytes_are_refused_before_anything_is_read():
    assert refusal(picture() + bytes(2_000_000)) == (ImageTooLargeError, "image_bytes")


def test_a_scan_bomb_is_refused_and_an_honest_progressive_jpeg_is_served():
    assert opened(encode(noise(64, 64), "JPEG", progressive=True))[0].size == (64, 64)
    assert refusal(scan_bomb(2_000)) == (ImageRejectedError, "image_scans")


@pytest.mark.parametrize(
    "filling",
    [b"\xff\x00", b"\xff\xff", b"\xff\xfe\x00\x02", b"\xff\xd0", b"\xff\xd8"],
    ids=["stuffing", "padding", "comments", "restarts", "starts"],
)
def test_the_marker_walk_of_a_hostile_jpeg_is_fast(filling):
    started_s = time.perf_counter()
    refusal(b"\xff\xd8\xff" + filling * (1_900_000 // len(filling)))
    assert time.perf_counter() - started_s < 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_file_that_is_cut_is_refused(kind, share):
    data = encode(noise(80, 60), kind)
    found, code = refusal(data[: int(len(data) * share)])
    assert found is ImageRejectedError
    assert code in {"image_truncated", "image_undecodable"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_flipped_bytes_are_served_or_refused_and_nothing_else(kind):
    data = encode(noise(40, 30), kind)
    rng = np.random.default_rng(1)
    n_refused = 0
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(0, 256)
        try:
            image, _ = opened(bytes(broken))
            assert image.mode == "RGB"
        except ImageRejectedError:
            n_refused += 1
    assert n_refused > 0


def test_a_wrong_checksum_of_the_header_is_refused():
    data = bytearray(picture())
    data[29] ^= 0xFF
    assert refusal(bytes(data)) == (ImageRejectedError, "image_undecodable")


def test_text_that_would_be_40_mb_is_not_decompressed():
    image, _ = opened(text_bomb())
    assert image.size == (8, 8)
    assert "comment" not in image.info


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(kind):
    assert refusal(animated(kind)) == (ImageRejectedError, "image_animated")


def test_the_first_picture_of_a_multi_picture_jpeg_is_served_with_a_note():
    image, notes = opened(animated("MPO"))
    assert (image.size, notes) == ((8, 8), ("first_frame",))


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_orientation_is_applied(turn):
    upright = Image.new("RGB", (16, 8), (0, 0, 0))
    upright.paste((255, 0, 0), (0, 0, 8, 4))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[turn])) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    image, _ = opened(encode(stored, "PNG", exif=exif))
    assert image.size == (16, 8)
    assert image.getpixel((1, 1)) == (255, 0, 0)
    assert image.getpixel((14, 6)) == (0, 0, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_is_ignored(exif):
    data = picture(kind="JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert opened(data[:2] + segment + data[2:])[0].size == (20, 24)


def test_a_senseless_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 99
    assert opened(encode(Image.new("RGB", (6, 4)), "PNG", exif=exif))[0].size == (6, 4)


def test_a_cmyk_jpeg_is_converted_and_says_so():
    image, notes = opened(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert notes == ("cmyk",)
    red, green, blue = image.getpixel((4, 4))
    assert red > 200 > 60 > max(green, blue)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65_535, 256, dtype=np.uint16).reshape(16, 16)
    image, _ = opened(encode(Image.fromarray(ramp)))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], ramp >> 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_are_white_whatever_colour_they_hide(kind):
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    flat, _ = opened(encode(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert flat.getpixel((4, 4)) == (255, 255, 255)


def test_half_transparent_red_is_pink():
    flat, _ = opened(encode(Image.new("RGBA", (8, 8), (255, 0, 0, 128))))
    red, green, blue = flat.getpixel((4, 4))
    assert red == 255
    assert 120 < green == blue < 135


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_becomes_rgb(mode):
    image, _ = opened(encode(Image.new(mode, (9, 5))))
    assert (image.mode, image.size) == ("RGB", (9, 5))


def test_a_palette_with_a_transparent_colour_is_composited():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert opened(encode(image, transparency=0))[0].getpixel((1, 1)) == (255, 255, 255)


def test_bytes_after_the_end_are_ignored():
    assert opened(picture() + b"<script>")[0].size == (20, 24)


def test_the_format_is_detected_from_the_first_bytes():
    assert [sniff(picture(kind=kind)) for kind in ("JPEG", "PNG", "WEBP")] == ["JPEG", "PNG", "WEBP"]


def test_a_full_decoder_refuses_images_and_has_room_again_afterwards():
    decoder = Decoder(Settings(max_images=3, max_decoding_images=3), 16, PREPROCESS)
    places = decoder.places
    with places.holding("aa"):
        places.check("a", 1)
        with pytest.raises(OverloadedError), places.holding("aa"):
            pass
    with places.holding("aaa"), pytest.raises(OverloadedError):
        places.check("a", 1)
    with places.holding("aaa"), places.holding("b"):
        pass
    decoder.close()


def test_the_error_of_a_damaged_image_does_not_hold_its_pixels():
    decoder = Decoder(Settings(), 16, PREPROCESS)
    data = encode(noise(80, 60), "PNG")

    async def decode():
        with pytest.raises(ImageRejectedError) as refused:
            await decoder.decode(data[: len(data) // 2], "a")
        return refused.value

    error = asyncio.run(decode())
    decoder.close()
    assert (error.__cause__, error.__context__) == (None, None)
    held = [value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values()]
    assert not any(isinstance(value, Image.Image) for value in held)


def test_the_decoder_returns_pixels_in_the_layout_of_the_model():
    decoder = Decoder(Settings(), 16, PREPROCESS)

    async def decode():
        return await asyncio.gather(*(decoder.decode(picture(colour), "a") for colour in ("red", "blue")))

    red, blue = asyncio.run(decode())
    decoder.close()
    assert red.pixels.shape == (3, 16, 16)
    assert red.pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert blue.pixels[:, 0, 0].tolist() == [0, 0, 255]
