"""Headers of image files, limits that are checked before a decoder runs, and PNG metadata that is removed."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from prompted_clip.preprocess import PNG_MAGIC, upright_rgb, without_metadata
from service.errors import ImageRejectedError, ImageTooLargeError
from service.images.decoder import open_image
from service.images.headers import (
    MAX_CHUNKS,
    MAX_HEADER_SEGMENTS,
    check_work,
    read_header,
)
from service.settings import Settings
from tests.service.images.test_webp import animation_of_one_frame

LIMITS = Settings(max_image_pixels=1_000_000)
EXIF_ORIENTATION = 0x0112
HEIGHT, WIDTH = 30, 40


def noise(*shape, dtype=np.uint8):
    values = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, *shape), dtype=dtype)
    return Image.fromarray(values)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation=6):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


def chunk(name, body, checksum=None):
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def with_chunks(png, *chunks):
    """A PNG with chunks after its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def pixels(data):
    image, _ = open_image(data, LIMITS, lambda image, _: upright_rgb(image))
    return np.asarray(image)


def code_of(data, limits=LIMITS):
    with pytest.raises(ImageRejectedError) as refused:
        open_image(data, limits, lambda image, _: upright_rgb(image))
    return refused.value.code


HEADERS = {
    "JPEG": (lambda: encode(noise(3), "JPEG"), 4),
    "JPEG with EXIF": (lambda: encode(noise(3), "JPEG", exif=turned()), 8),
    "JPEG, grey": (lambda: encode(noise(), "JPEG"), 8),
    "JPEG, progressive": (lambda: encode(noise(3), "JPEG", progressive=True), 10),
    "JPEG, CMYK": (lambda: encode(noise(3).convert("CMYK"), "JPEG"), 8),
    "JPEG, CMYK, progressive": (lambda: encode(noise(3).convert("CMYK"), "JPEG", progressive=True), 12),
    "PNG": (lambda: encode(noise(3), "PNG"), 8),
    "PNG, grey": (lambda: encode(noise(), "PNG"), 5),
    "PNG, palette": (lambda: encode(noise().convert("P"), "PNG"), 5),
    "PNG, 16-bit grey": (lambda: encode(noise(dtype=np.uint16), "PNG"), 8),
    "WEBP": (lambda: encode(noise(3), "WEBP"), 8),
    "WEBP, lossless": (lambda: encode(noise(4), "WEBP", lossless=True), 8),
    "WEBP with EXIF": (lambda: encode(noise(3), "WEBP", exif=turned()), 8),
    "WEBP with alpha": (lambda: encode(noise(4), "WEBP"), 9),
    "WEBP, animated": (lambda: animation_of_one_frame(noise(3)), 16),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_has_the_size_that_pillow_reads_and_a_bound_of_the_memory(name):
    make, bytes_per_pixel = HEADERS[name]
    header = read_header(make(), 10**6)
    assert header.kind == name[:4].strip(",")
    assert header.size == (WIDTH, HEIGHT)
    n_bytes = header.n_bytes / (WIDTH * HEIGHT)
    assert n_bytes == bytes_per_pixel or (header.kind == "WEBP" and bytes_per_pixel < n_bytes < 400)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_header_is_read_from_any_damaged_file(kind):
    data = encode(noise(3), kind)
    rng = np.random.default_rng(5)
    for n_bytes in range(1, len(data)):
        broken = bytearray(data[:n_bytes])
        for at in rng.integers(0, n_bytes, 2):
            broken[at] = rng.integers(0, 256)
        try:
            header = read_header(bytes(broken), 10**6)
        except ImageRejectedError:
            continue
        assert header.n_pixels >= 0


def test_a_png_whose_first_header_is_not_the_one_that_is_decoded_is_refused():
    data = encode(noise(3), "PNG")
    small = bytearray(data[8:33])
    small[8:16] = struct.pack(">II", 1, 1)
    assert code_of(PNG_MAGIC + chunk(b"IHDR", bytes(small[8:21])) + data[8:]) == "image_undecodable"
    assert code_of(PNG_MAGIC + chunk(b"tEXt", b"a\0b") + data[8:]) == "image_undecodable"


def test_the_scans_of_a_jpeg_are_limited_in_proportion_to_its_pixels():
    data = encode(noise(3), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")

    def with_scans(n_more):
        return data[:last] + data[last:-2] * (n_more + 1) + data[-2:]

    few_pixels = Settings(max_image_pixels=WIDTH * HEIGHT)
    assert pixels(with_scans(90)).shape == (HEIGHT, WIDTH, 3)
    assert code_of(with_scans(91)) == "image_scans"
    open_image(with_scans(10), few_pixels, lambda image, _: upright_rgb(image))
    assert code_of(with_scans(11), few_pixels) == "image_scans"


def test_an_arithmetic_jpeg_is_limited_to_few_pixels():
    data = bytearray(encode(noise(3), "JPEG"))
    data[data.index(b"\xff\xc0") + 1] = 0xC9
    header = read_header(bytes(data), 10**6)
    assert header.pixel_cost > 1
    assert check_work(bytes(data), header, LIMITS) == data
    with pytest.raises(ImageRejectedError, match="0 scans"):
        check_work(bytes(data), header, Settings(max_image_pixels=WIDTH * HEIGHT))


def test_a_png_of_16_bit_colour_may_have_half_the_pixels():
    data = bytearray(png_header := encode(noise(3), "PNG"))
    data[24] = 16
    header = read_header(bytes(data), 10**6)
    check_work(bytes(data), header, Settings(max_image_pixels=2 * WIDTH * HEIGHT))
    with pytest.raises(ImageTooLargeError) as refused:
        check_work(bytes(data), header, Settings(max_image_pixels=2 * WIDTH * HEIGHT - 1))
    assert refused.value.code == "image_pixels"
    check_work(png_header, read_header(png_header, 10**6), Settings(max_image_pixels=WIDTH * HEIGHT))


@pytest.mark.parametrize("segment", [b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xed\x00\x04ab", b"\xff\xfe\x00\x04ab"])
def test_segments_before_the_first_scan_are_limited(segment):
    data = encode(noise(3), "JPEG")
    assert pixels(data[:2] + segment * 200 + data[2:]).shape == (HEIGHT, WIDTH, 3)
    assert code_of(data[:2] + segment * MAX_HEADER_SEGMENTS + data[2:]) == "image_scans"


def test_chunks_are_limited_before_the_decoder_sees_them():
    data = encode(noise(3), "PNG")
    n_chunks = 3
    empty = [chunk(b"IDAT", b"")] * (MAX_CHUNKS - n_chunks)
    np.testing.assert_array_equal(pixels(with_chunks(data, *empty)), pixels(data))
    assert code_of(with_chunks(data, *empty, empty[0])) == "image_chunks"
    assert code_of(with_chunks(data, *[chunk(b"tEXt", b"")] * 300_000)) == "image_chunks"


def test_chunks_of_a_webp_are_limited_and_bytes_after_its_end_are_not_counted():
    data = encode(noise(3), "WEBP", exif=turned(1))
    few, many = (b"ABCD\1\0\0\0xx" * n_chunks for n_chunks in (MAX_CHUNKS - 3, MAX_CHUNKS))
    expected = pixels(data)
    for body in (data[8:] + few, data[8:]):
        np.testing.assert_array_equal(pixels(b"RIFF" + struct.pack("<I", len(body)) + body + bytes(300_000)), expected)
    body = data[8:] + many
    assert code_of(b"RIFF" + struct.pack("<I", len(body)) + body) == "image_chunks"


METADATA = {
    "compressed text": chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * 5_000_000)),
    "compressed international text": chunk(b"iTXt", b"comment\0\1\0\0\0" + zlib.compress(b"x" * 5_000_000)),
    "a colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(5_000_000))),
    "a colour profile of an unknown compression": chunk(b"iCCP", b"profile\0\7" + bytes(20)),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b", checksum=0),
    "a short gamma": chunk(b"gAMA", b"\0"),
    "an unknown chunk with a wrong checksum": chunk(b"abCd", b"1234", checksum=1),
    "orientation in XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    "orientation in text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\n" + turned().tobytes().hex().encode()),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_does_not_affect_the_pixels_is_skipped(name):
    data = encode(noise(3), "PNG")
    extended = with_chunks(data, METADATA[name])
    assert without_metadata(extended) == data
    np.testing.assert_array_equal(pixels(extended), pixels(data))


@pytest.mark.parametrize("name", [b"tRNS", b"eXIf", b"PLTE"])
def test_a_wrong_checksum_of_a_chunk_that_affects_the_pixels_is_refused(name):
    assert code_of(with_chunks(encode(noise(3), "PNG"), chunk(name, bytes(6), checksum=0))) == "image_undecodable"


def test_metadata_after_the_pixels_is_skipped_and_an_orientation_there_applied():
    data = encode(noise(3), "PNG")
    orientation = chunk(b"eXIf", turned().tobytes()[6:])
    extended = data[:-12] + METADATA["compressed text"] + orientation + data[-12:] + b"more"
    assert without_metadata(extended) == data[:-12] + orientation + data[-12:]
    assert pixels(extended).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_alone_is_ignored_and_one_in_exif_wins(kind):
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    assert pixels(encode(noise(3), kind, xmp=xmp)).shape == (HEIGHT, WIDTH, 3)
    assert pixels(encode(noise(3), kind, xmp=xmp, exif=turned(8))).shape == (WIDTH, HEIGHT, 3)


def test_a_png_keeps_its_palette_transparency_and_orientation():
    image = noise().quantize(16)
    data = encode(image, "PNG", transparency=bytes(range(0, 256, 16)), exif=turned(), icc_profile=b"x" * 300)
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "text")
    kept = without_metadata(encode(image, "PNG", transparency=bytes(range(0, 256, 16)), exif=turned(), pnginfo=info))
    assert kept == without_metadata(data)
    for name in (b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"):
        assert name in kept
    assert b"iCCP" not in without_metadata(data)


@pytest.mark.parametrize("n_bytes", [20, 40, 60, 200, -14, -9, -5])
def test_a_png_that_is_cut_reaches_the_decoder_as_it_is(n_bytes):
    data = encode(noise(3), "PNG")[:n_bytes]
    assert without_metadata(data) == data
