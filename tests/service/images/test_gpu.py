"""JPEGs decoded by nvImageCodec, here on the CPU: pixels, batches, and files that it declines."""

import asyncio
import io
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from prompted_clip.preprocess import upright_rgb
from service.errors import ImageRejectedError, SettingsError
from service.images import gpu as gpu_decoder
from service.images.decoder import open_image
from service.images.gpu import MAX_RATIO, GpuDecoder
from service.images.preprocessing import Fast, Gpu, preprocessing
from tests.service.images.test_preprocessing import (
    CLIP,
    EXIF_ORIENTATION,
    KINDS,
    LIMITS,
    SIDE,
    encode,
    photograph,
    turned,
)

pytest.importorskip("nvidia.nvimgcodec")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu(real_only="nvImageCodec"))]
LEVELS = {"cpu": 1, "cuda": 16}
"""Largest difference of a value: by rounding; by another decoder's rounding before that."""


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def decoder(device):
    return GpuDecoder(torch.device(device), SIDE, CLIP)


@pytest.fixture
def way(decoder):
    return Gpu(Fast(SIDE, CLIP), decoder)


def pixels_of(way, data):
    return open_image(data, LIMITS, way.decode)[0]()


def resized(data):
    """A file's pixels by Pillow, resized in float64."""
    with Image.open(io.BytesIO(data)) as image:
        rgb = torch.from_numpy(np.array(upright_rgb(image)))
    pixels = rgb.permute(2, 0, 1)[None].double()
    height, width = pixels.shape[2:]
    size = [int(SIDE * side / min(height, width)) for side in (height, width)]
    large = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)[0]
    top, left = (round((side - SIDE) / 2) for side in size)
    return large[:, top : top + SIDE, left : left + SIDE].round().clamp(0, 255).to(torch.uint8).numpy()


def decoded(decoder, data):
    with Image.open(io.BytesIO(data)) as image:
        return decoder.decode(data, image.size)


def differ(one, other):
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("JPEG")])
@pytest.mark.parametrize("name", ["cat", "camera"])
def test_pixels_are_those_of_the_whole_picture_resized(decoder, device, kind, name):
    form, options = KINDS[kind]
    data = encode(photograph(name, (300, 200)), form, **options)
    assert differ(decoded(decoder, data), resized(data)) <= LEVELS[device]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(decoder, device, orientation):
    data = encode(photograph("cat", (160, 120)), exif=turned(orientation))
    assert differ(decoded(decoder, data), resized(data)) <= LEVELS[device]


def test_damaged_metadata_counts_as_none(decoder, device):
    data = encode(photograph("cat", (160, 120)), exif=turned(6))
    entry = data.index(EXIF_ORIENTATION.to_bytes(2, "big"))
    broken = data[: entry + 8] + b"\xff\xff" + data[entry + 10 :]
    assert differ(decoded(decoder, broken), resized(broken)) <= LEVELS[device]


def test_one_of_the_backbones_size_is_not_resized(decoder, device):
    data = encode(photograph("cat", (SIDE, SIDE)))
    assert differ(decoded(decoder, data), resized(data)) <= LEVELS[device] - (device == "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_served_and_plain_jpegs_by_the_device(decoder, kind):
    class Noting:
        def decode(self, data, size):
            seen.append(data)
            return decoder.decode(data, size)

    form, options = KINDS[kind]
    seen, data = [], encode(photograph("cat", (130, 90)), form, **options)
    pixels = pixels_of(Gpu(Fast(SIDE, CLIP), Noting()), data)
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (3, SIDE, SIDE), True)
    assert seen == ([data] if form == "JPEG" else [])


class Held:
    """Holds a decoder's first batch, of one file, until the others wait; notes the sizes of its batches."""

    def __init__(self, decoder):
        self.sizes = []
        self._decoder = decoder
        self._work = decoder._pixels
        self._has_begun, self._may_go = threading.Event(), threading.Event()

    def __call__(self, files):
        self.sizes.append(len(files))
        self._has_begun.set()
        assert self._may_go.wait(20)
        return self._work(files)

    def decode(self, files):
        """All files, the first of them before the others."""
        with ThreadPoolExecutor(len(files)) as threads:
            running = [threads.submit(decoded, self._decoder, files[0])]
            assert self._has_begun.wait(20)
            running += [threads.submit(decoded, self._decoder, data) for data in files[1:]]
            until_s = time.monotonic() + 20
            while len(self._decoder._queue) < len(files) - 1:
                assert time.monotonic() < until_s
                time.sleep(0.001)
            self._may_go.set()
            return [one.result() for one in running]


def test_files_queued_during_a_batch_form_the_next_one(decoder, monkeypatch):
    files = [encode(photograph("cat", (100 + n, 90))) for n in range(9)]
    alone = [decoded(decoder, data) for data in files]
    monkeypatch.setattr(decoder, "_pixels", held := Held(decoder))
    for one, other in zip(held.decode(files), alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert held.sizes == [1, 8]


def test_an_invalid_file_does_not_affect_its_batch(decoder, device):
    sound = encode(photograph("cat", (160, 120)))
    found = decoder._pixels([(data, (160, 120)) for data in (b"nothing", sound, sound[:200], sound)])
    assert [one is None for one in found] == [True, False, True, False]
    assert differ(found[1], resized(sound)) <= LEVELS[device]


def test_files_are_decoded_by_fast_when_the_library_fails(way, decoder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no engine")

    monkeypatch.setattr(decoder, "_pixels", broken)
    data = encode(photograph("cat", (SIDE + 9, SIDE)))
    assert decoded(decoder, data) is None
    np.testing.assert_array_equal(pixels_of(way, data), pixels_of(Fast(SIDE, CLIP), data))


def test_a_file_whose_size_two_parsers_read_differently_is_declined(decoder):
    data = encode(photograph("cat", (160, 120)))
    assert decoder.decode(data, (160, 121)) is None
    assert decoder.decode(data, (120, 160)) is None


def test_an_image_too_large_to_be_resized_in_one_step_is_declined(decoder):
    side = MAX_RATIO * SIDE + 1
    assert decoded(decoder, encode(Image.new("RGB", (side, side)))) is None
    assert decoded(decoder, encode(Image.new("RGB", (side - 1, side)))) is not None


def test_the_pixels_of_a_batch_are_bounded(decoder, monkeypatch):
    monkeypatch.setattr(gpu_decoder, "MAX_BATCH_PIXELS", 2 * 100 * 100)
    monkeypatch.setattr(decoder, "_pixels", held := Held(decoder))
    assert all(one is not None for one in held.decode([encode(photograph("cat", (100, 100)))] * 6))
    assert held.sizes == [1, 2, 2, 1]


def test_a_file_that_waits_too_long_for_the_device_is_decoded_by_fast(way, decoder, monkeypatch):
    monkeypatch.setattr(gpu_decoder, "TIMEOUT_S", 0.05)
    may_go = threading.Event()
    monkeypatch.setattr(decoder, "_pixels", lambda files: may_go.wait(20) and [None] * len(files))
    data = encode(photograph("cat", (130, 90)))
    np.testing.assert_array_equal(pixels_of(way, data), pixels_of(Fast(SIDE, CLIP), data))
    may_go.set()


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused_as_by_fast(way, cut):
    data = encode(photograph("cat", (300, 200)))
    with pytest.raises(ImageRejectedError) as refused:
        pixels_of(way, data[: int(cut * len(data))])
    assert refused.value.code == "image_truncated"


class Untouched:
    def decode(self, data, size):
        raise AssertionError("not for the device")


def test_unusual_files_never_reach_the_device():
    way = Gpu(Fast(SIDE, CLIP), Untouched())
    cat = photograph("cat", (90, 70))
    assert pixels_of(way, encode(cat, "PNG")).shape == (3, SIDE, SIDE)
    assert pixels_of(way, encode(cat.convert("CMYK"))).shape == (3, SIDE, SIDE)
    assert pixels_of(way, encode(cat, keep_rgb=True)).shape == (3, SIDE, SIDE)


@pytest.mark.anyio
async def test_a_server_decodes_many_files_at_a_time(serve):
    async with serve(preprocess="gpu") as client:
        files = [encode(photograph("cat", (90 + n, 70))) for n in range(12)]
        calls = [client.post("/classify/paint", files=[("images", ("a.jpg", data))]) for data in files]
        answers = await asyncio.gather(*calls)
        info = (await client.get("/info")).json()
        broken = await client.post("/classify/paint", content=files[0][:300])
    assert [answer.status_code for answer in answers] == [200] * 12
    assert info["preprocess"] == "gpu"
    assert broken.json()["code"] == "image_truncated"


def test_without_the_library_the_service_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(SettingsError, match="gpu-decode"):
        preprocessing("gpu", SIDE, CLIP)
