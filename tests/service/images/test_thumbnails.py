"""The thumbnails of example images."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from service.errors import ImageRejectedError
from service.images.decoder import Decoder, open_image, thumbnail_of
from service.settings import Settings
from tests.service.fakes import PREPROCESS, picture

LIMITS = Settings()


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def thumbnail(data):
    """The thumbnail of a file as an image, decoded beside the model's pixels."""
    decoder = Decoder(LIMITS, 16, PREPROCESS)
    decoded = asyncio.run(decoder.decode(data, "a", with_thumbnail=True))
    plain = asyncio.run(decoder.decode(data, "a"))
    decoder.close()
    np.testing.assert_array_equal(decoded.pixels, plain.pixels)
    assert plain.thumbnail is None
    assert decoded.thumbnail[8:12] == b"WEBP"
    return Image.open(io.BytesIO(decoded.thumbnail))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((20, 24), (20, 24)),
        ((640, 480), (320, 240)),
        ((1000, 3000), (107, 320)),
        ((3000, 150), (320, 16)),
        ((20, 1), (20, 1)),
    ],
)
def test_a_thumbnail_has_at_most_320_pixels_per_side(kind, size, expected):
    image = thumbnail(picture("blue", size, kind))
    assert image.size == expected
    red, green, blue = image.convert("RGB").getpixel((expected[0] // 2, expected[1] // 2))
    assert blue > 240 > 15 > max(red, green)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_thumbnail_is_upright(kind, turn):
    upright = Image.new("RGB", (1600, 800), (0, 0, 0))
    upright.paste((255, 0, 0), (0, 0, 800, 400))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[turn])) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    image = thumbnail(encode(stored, kind, exif=exif))
    assert image.size == (320, 160)
    assert "exif" not in image.info
    assert image.convert("RGB").getpixel((20, 20))[0] > 200
    assert max(image.convert("RGB").getpixel((300, 140))) < 50


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK"])
def test_an_image_of_every_mode_has_a_thumbnail(mode):
    image = thumbnail(encode(Image.new(mode, (900, 500)), "JPEG" if mode == "CMYK" else "PNG"))
    assert (image.mode, image.size) == ("RGB", (320, 178))


def test_a_thumbnail_contains_no_metadata_of_its_image():
    data = encode(noise(64, 48), "JPEG", icc_profile=bytes(500_000), comment=b"at home")
    with_profile, _ = open_image(data, LIMITS, thumbnail_of)
    without, _ = open_image(encode(noise(64, 48), "JPEG"), LIMITS, thumbnail_of)
    assert with_profile == without


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_can_be_decoded_has_a_thumbnail_and_a_damaged_one_is_refused(kind):
    data = encode(noise(700, 500), kind)
    rng, decoder, outcomes = np.random.default_rng(1), Decoder(LIMITS, 16, PREPROCESS), []

    async def outcome(file, **options):
        try:
            await decoder.decode(file, "a", **options)
        except ImageRejectedError as error:
            return error.code
        return "decoded"

    files = [data, data[: len(data) // 2], b""]
    for _ in range(20):
        flipped = bytearray(data)
        flipped[rng.integers(0, len(data))] ^= 255
        files.append(bytes(flipped))
    for file in files:
        outcomes.append(asyncio.run(outcome(file)))
        assert asyncio.run(outcome(file, with_thumbnail=True)) == outcomes[-1]
    decoder.close()
    cut = "image_undecodable" if kind == "WEBP" else "image_truncated"
    assert outcomes[:3] == ["decoded", cut, "image_undecodable"]
