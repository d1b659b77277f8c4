"""WebP files decode to the pixels of Pillow's own decoder, without the GIL; `tests.hostile` measures the memory."""

import io
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import ImageRejectedError
from service.images import decoder, webp
from service.images.decoder import open_image, thumbnail_of
from service.images.preprocessing import Exact, Fast
from service.settings import Settings
from tests.hostile.image_bombs import encode, turned

LIMITS = Settings(max_image_aspect=200)
VALUES = {"interpolation": "bicubic", "resize_mode": "shortest"}
SIDE = 32
WAYS = {"exact": Exact(SIDE, VALUES), "fast": Fast(SIDE, VALUES)}
PROFILE = b"an ICC profile, which is not applied"

sides = st.one_of(st.just(SIDE), st.integers(1, 150))
files = st.fixed_dictionaries(
    {
        "lossless": st.booleans(),
        "quality": st.sampled_from((0, 30, 80, 100)),
        "method": st.sampled_from((0, 4)),
        "exact": st.booleans(),
        "orientation": st.integers(0, 8),
        "icc_profile": st.sampled_from((b"", PROFILE)),
    }
)


def picture(rng, width, height, mode):
    """Noise on a gradient, whose alpha channel has clear, opaque and blended parts."""
    n_channels = len(mode)
    noise = rng.integers(-40, 40, (height, width, n_channels))
    steps = np.linspace(0, 255, width)[None, :, None]
    image = np.clip(steps + noise, 0, 255).astype(np.uint8)
    image[: height // 3, :, 3:] = 0
    return Image.fromarray(image, mode)


def webp_file(image, *, orientation=0, **options):
    return encode(image, "WEBP", **options, **({"exif": turned(orientation)} if orientation else {}))


def animation_of_one_frame(image):
    """A WebP that libwebp's simple decoder refuses, and that is a still image."""
    still = encode(image, "WEBP", lossless=True)
    size = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    return riff(
        riff_chunk(b"VP8X", b"\x02\0\0\0" + size)
        + riff_chunk(b"ANIM", bytes(6))
        + riff_chunk(b"ANMF", bytes(6) + size + bytes(4) + still[12:])
    )


def riff(chunks):
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


def riff_chunk(name, body):
    return name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)


def with_pillow(data, decode):
    """The same without libwebp's simple decoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "decode_webp", lambda *_: None)
        return open_image(data, LIMITS, decode)


def opened(data):
    with Image.open(io.BytesIO(data)) as image:
        return webp.decode_webp(data, image.size, image.mode, image.info)


def test_pillow_is_linked_to_a_library_with_the_simple_decoder():
    assert webp.IS_AVAILABLE


@settings(deadline=None)
@given(sides, sides, st.sampled_from(("RGB", "RGBA")), files, st.integers(0, 2**32 - 1))
def test_a_still_webp_has_the_pixels_of_pillows_decoder(width, height, mode, options, seed):
    data = webp_file(picture(np.random.default_rng(seed), width, height, mode), **options)
    decoded = opened(data)
    with Image.open(io.BytesIO(data)) as expected:
        assert decoded.info == expected.info
        assert (decoded.mode, decoded.size) == ({"RGB": "RGBX", "RGBA": "RGBA"}[expected.mode], expected.size)
        n_channels = len(expected.mode)
        np.testing.assert_array_equal(np.asarray(decoded)[..., :n_channels], np.asarray(expected))
    for way in WAYS.values():
        (resize, notes), (resize_pillow, notes_pillow) = (
            open_image(data, LIMITS, way.decode),
            with_pillow(data, way.decode),
        )
        pixels = resize()
        np.testing.assert_array_equal(pixels, resize_pillow())
        assert (pixels.shape, pixels.dtype, notes) == ((3, SIDE, SIDE), np.uint8, notes_pillow)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("orientation", [0, 6])
def test_a_thumbnail_of_a_webp_is_the_same_with_pillows_decoder(mode, orientation):
    data = webp_file(picture(np.random.default_rng(0), 900, 700, mode), orientation=orientation)
    assert open_image(data, LIMITS, thumbnail_of) == with_pillow(data, thumbnail_of)


def test_an_animation_of_one_frame_is_decoded_by_pillow():
    frame = picture(np.random.default_rng(1), 40, 30, "RGB")
    data = animation_of_one_frame(frame)
    assert opened(data) is None
    rgb, _ = open_image(data, LIMITS, lambda image, _: np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(rgb, np.asarray(frame))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_damaged_webp_is_decoded_or_refused_as_with_pillows_decoder(seed, lossless):
    rng = np.random.default_rng(seed)
    data = bytearray(webp_file(picture(rng, 70, 50, "RGBA"), lossless=lossless))
    for at in rng.integers(12, len(data), 3):
        data[at] = rng.integers(0, 256)
    cut = bytes(data[: rng.integers(len(data) // 2, len(data) + 1)])

    def outcome(of):
        try:
            return of()[0]().tobytes()
        except ImageRejectedError as error:
            return error.code

    way = WAYS["exact"].decode
    assert outcome(lambda: open_image(cut, LIMITS, way)) == outcome(lambda: with_pillow(cut, way))


def test_other_threads_run_while_a_webp_is_decoded(monkeypatch):
    data = encode(Image.new("RGB", (4_000, 4_000)), "WEBP", lossless=True)
    n_turns, is_over, found, decode = 0, threading.Event(), [], webp._DECODE

    def take_turns():
        nonlocal n_turns
        while not is_over.wait(0.001):
            n_turns += 1

    def watched(*arguments):
        before = n_turns
        address = decode(*arguments)
        found.append(n_turns - before)
        return address

    monkeypatch.setattr(webp, "_DECODE", watched)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(100)  # the GIL changes hands only where it is released
    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        assert opened(data) is not None
    finally:
        sys.setswitchinterval(interval_s)
        is_over.set()
        thread.join()
    assert found[0] > 0
