"""`exact` is open_clip's transform to the bit, `fast` is close to it, and both accept the same files."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from skimage import data as photographs

from prompted_clip.preprocess import normalize_pixels
from service.errors import ImageRejectedError
from service.images.decoder import open_image
from service.images.preprocessing import Exact, Fast, decode_jpeg, is_plain_jpeg, preprocessing
from service.settings import Settings

LIMITS = Settings(
    max_image_bytes=5_000_000,
    max_image_pixels=5_000_000,
    max_image_side_px=4_096,
    max_image_aspect=20,
    max_image_scans=100,
)
CLIP = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "shortest"}
EXIF_ORIENTATION = 0x0112
SIDE = 64

PHOTOGRAPHS = {
    "astronaut": photographs.astronaut(),
    "cat": photographs.chelsea(),
    "coffee": photographs.coffee(),
    "camera": photographs.camera(),
    "coins": photographs.coins(),
}
KINDS = {
    "JPEG 4:2:0": ("JPEG", {"subsampling": 2}),
    "JPEG 4:2:2": ("JPEG", {"subsampling": 1}),
    "JPEG 4:4:4": ("JPEG", {"subsampling": 0, "quality": 97}),
    "JPEG progressive": ("JPEG", {"progressive": True, "quality": 60}),
    "JPEG with restarts": ("JPEG", {"restart_marker_blocks": 3}),
    "PNG": ("PNG", {}),
    "WEBP": ("WEBP", {"quality": 80}),
}


def photograph(name="astronaut", size=None, mode=None):
    image = Image.fromarray(PHOTOGRAPHS[name])
    image = image.resize(size) if size else image
    return image.convert(mode) if mode else image


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


def pixels_of(way, data):
    resize, _ = open_image(data, LIMITS, way.decode)
    return resize()


def open_clip_input(data, side, values=CLIP):
    """The output of open_clip's own transform."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in {"1", "P"}:  # open_clip resizes these by nearest neighbour, before it converts them
            upright = upright.convert("RGB")
    return image_transform_v2(PreprocessCfg(**values, size=side), is_train=False)(upright)


def assert_is_open_clips(data, side, values=CLIP):
    pixels = torch.from_numpy(pixels_of(Exact(side, values), data))
    assert torch.equal(normalize_pixels(pixels[None], values)[0], open_clip_input(data, side, values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_exact_is_open_clips_transform_to_the_last_bit(name, kind):
    container, options = KINDS[kind]
    for size in (None, (224, 224), (223, 225), (224, 301), (97, 61)):
        assert_is_open_clips(encode(photograph(name, size), container, **options), 224)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_exact_is_open_clips_transform_for_models_with_another_one(resize_mode, interpolation):
    values = CLIP | {"resize_mode": resize_mode, "interpolation": interpolation}
    for size in ((SIDE, SIDE), (150, 101), (101, 150), (40, 33)):
        assert_is_open_clips(encode(photograph("cat", size)), SIDE, values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(SIDE, SIDE), (151, 98)])
def test_exact_turns_a_picture_before_it_is_cropped(orientation, size):
    assert_is_open_clips(encode(photograph("coffee", size), exif=turned(orientation)), SIDE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_exact_is_open_clips_transform_for_every_opaque_mode(mode):
    for size in ((SIDE, SIDE), (90, 120)):
        assert_is_open_clips(encode(photograph("cat", size, mode), "PNG"), SIDE)


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    is_progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "L"]),
    restart_blocks=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_simplejpeg_gives_the_bits_of_pillow(
    width, height, quality, subsampling, is_progressive, mode, restart_blocks, seed
):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = encode(
        Image.fromarray(noise).convert(mode),
        quality=quality,
        subsampling=subsampling,
        progressive=is_progressive,
        restart_marker_blocks=restart_blocks,
    )
    with Image.open(io.BytesIO(data)) as image:
        rgb_hwc, extent = decode_jpeg(image, data)
        np.testing.assert_array_equal(rgb_hwc, np.asarray(image.convert("RGB")))
        assert extent is None


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE + 3, SIDE), (131, 97), (640, 480)])
def test_simplejpeg_gives_the_bits_of_pillow_for_photographs(size):
    for name in PHOTOGRAPHS:
        data = encode(photograph(name, size))
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode_jpeg(image, data)[0], np.asarray(image.convert("RGB")))


def test_other_files_are_left_to_pillow():
    sound = encode(photograph(size=(40, 30)))
    for other in (encode(photograph(), "PNG"), encode(photograph(mode="CMYK"))):
        with Image.open(io.BytesIO(other)) as image:
            assert not is_plain_jpeg(image)
    with Image.open(io.BytesIO(sound)) as image:
        assert is_plain_jpeg(image)
        assert decode_jpeg(image, sound[:-40]) is None
    with Image.open(io.BytesIO(encode(photograph(size=(41, 30))))) as another:
        assert decode_jpeg(another, sound) is None


def damaged(data, rng):
    """The file cut, with a hole, with a patch, or with some bytes changed, near its start or anywhere."""
    at = int(rng.integers(2, len(data)))
    match int(rng.integers(5)):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + int(rng.integers(1, 40)) :]
        case 2:
            return data[:at] + rng.bytes(int(rng.integers(1, 20))) + data[at:]
        case where:
            broken = bytearray(data)
            for spot in rng.integers(2, min(len(data), 700) if where == 3 else len(data), 3):
                broken[spot] = rng.integers(256)
            return bytes(broken)


def outcome(data, way):
    """The pixels and notes, or the code of the refusal."""
    try:
        resize, notes = open_image(data, LIMITS, way.decode)
    except ImageRejectedError as error:
        return error.code
    return resize(), notes


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged metadata
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(SIDE, SIDE), (270, 200)])
def test_damaged_files_are_accepted_or_refused_alike_in_both_ways(kind, size):
    container, options = KINDS[kind]
    data = encode(photograph("coffee", size), container, **options)
    rng = np.random.default_rng(len(data))
    outcomes = {str: 0, tuple: 0}
    for _ in range(60):
        broken = damaged(data, rng)
        exactly, fast = (outcome(broken, way) for way in (Exact(SIDE, CLIP), Fast(SIDE, CLIP)))
        outcomes[type(exactly)] += 1
        if isinstance(exactly, str):
            assert fast == exactly
        else:
            assert fast[1] == exactly[1]
    assert outcomes[str] > 0
    assert outcomes[tuple] > 0 or container == "PNG"  # of a PNG, a checksum guards every byte


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_fast_differs_by_rounding_where_nothing_is_reduced(kind, resize_mode, interpolation):
    container, options = KINDS[kind]
    values = CLIP | {"resize_mode": resize_mode, "interpolation": interpolation}
    for name in PHOTOGRAPHS:
        for size in ((SIDE, SIDE), (127, 110), (75, 126), (33, 50)):
            data = encode(photograph(name, size), container, **options)
            exact, fast = (pixels_of(way, data).astype(int) for way in (Exact(SIDE, values), Fast(SIDE, values)))
            difference = np.abs(exact - fast)
            assert difference.mean() < 0.3
            assert difference.max() <= (
                1 if size == (127, 110) else 16
            )  # Pillow resizes some tall ones in another order


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_fast_reduces_large_jpegs_while_decoding_and_stays_close(name):
    data = encode(photograph(name, (1200, 900)))
    with Image.open(io.BytesIO(data)) as image:
        rgb_hwc, extent_hw = decode_jpeg(image, data, min_side_px=2 * SIDE)
    assert 2 * SIDE <= min(rgb_hwc.shape[:2]) <= 900 / 4
    assert all(side - 1 < extent <= side for side, extent in zip(rgb_hwc.shape, extent_hw, strict=False))
    difference = np.abs(pixels_of(Fast(SIDE, CLIP), data).astype(int) - pixels_of(Exact(SIDE, CLIP), data))
    assert 0 < difference.mean() < 1
    assert difference.max() < 24


@given(
    width=st.integers(150, 700),
    height=st.integers(150, 700),
    resize_mode=st.sampled_from(["shortest", "squash"]),
    orientation=st.integers(1, 8),
)
def test_a_reduced_image_is_not_shifted_whatever_its_size(width, height, resize_mode, orientation):
    # A smooth slope: a picture that lay half a pixel elsewhere would be darker or lighter everywhere.
    slope = np.linspace(0, 255, width)[None, :] * np.linspace(1, 0.2, height)[:, None]
    data = encode(Image.fromarray(slope.astype(np.uint8)), quality=100, exif=turned(orientation))
    values = CLIP | {"resize_mode": resize_mode}
    exact, fast = (pixels_of(way, data).astype(int) for way in (Exact(SIDE, values), Fast(SIDE, values)))
    assert exact.shape == fast.shape
    inner = (exact - fast)[:, 2:-2, 2:-2]
    assert abs(inner.mean()) < 0.3
    assert np.abs(inner).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(SIDE, SIDE), (100, 71), (640, 399)])
def test_fast_turns_a_picture_before_it_is_cropped(orientation, size):
    data = encode(photograph("coffee", size), exif=turned(orientation))
    exact, fast = (pixels_of(way, data).astype(int) for way in (Exact(SIDE, CLIP), Fast(SIDE, CLIP)))
    assert np.abs(exact - fast).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_fast_shows_every_mode_of_png_as_exact_does(mode):
    photo = photograph("cat", (90, 70))
    image = (
        photo.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(photo.convert("L")).astype("u2") * 257)
    )
    if mode in {"LA", "RGBA"}:
        image.putalpha(photo.convert("L"))
    exact, fast = (pixels_of(way, encode(image, "PNG")).astype(int) for way in (Exact(SIDE, CLIP), Fast(SIDE, CLIP)))
    assert np.abs(exact - fast).max() <= 1


@pytest.mark.parametrize("way", [Exact(SIDE, CLIP), Fast(SIDE, CLIP)], ids=["exact", "fast"])
@pytest.mark.parametrize("size", [(SIDE, SIDE), (400, 300)])
def test_notes_are_the_same_in_both_ways(way, size):
    image = photograph("cat", size)
    assert open_image(encode(image.convert("CMYK")), LIMITS, way.decode)[1] == ("cmyk",)
    several = encode(image, "MPO", save_all=True, append_images=[image.rotate(180)])
    assert open_image(several, LIMITS, way.decode)[1] == ("first_frame",)
    assert open_image(encode(image), LIMITS, way.decode)[1] == ()


@pytest.mark.parametrize("way", [Exact(SIDE, CLIP), Fast(SIDE, CLIP)], ids=["exact", "fast"])
def test_pixels_are_one_block_of_memory_in_the_order_of_the_model(way):
    for size in ((SIDE, SIDE), (130, 90), (700, 500)):
        pixels = pixels_of(way, encode(photograph("cat", size)))
        assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (3, SIDE, SIDE), True)


def test_the_setting_chooses_the_preprocessing():
    assert preprocessing("exact", SIDE, CLIP) == Exact(SIDE, CLIP)
    assert preprocessing("fast", SIDE, CLIP) == Fast(SIDE, CLIP)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["exact", "fast"])
async def test_the_service_decodes_as_the_setting_says_and_reports_it(serve, way, monkeypatch):
    used = []
    for kind in (Exact, Fast):
        monkeypatch.setattr(
            kind, "decode", lambda self, *given, decode=kind.decode: used.append(type(self)) or decode(self, *given)
        )
    async with serve(preprocess=way) as client:
        files = [("images", ("a.jpg", encode(photograph("cat", (90, 70)))))]
        answer = await client.post("/classify/paint", files=files)
        info = (await client.get("/info")).json()
    assert answer.status_code == 200
    assert used == [{"exact": Exact, "fast": Fast}[way]]
    assert info["preprocess"] == way
