"""From image files of every mode to pixels: the same in training as in the service."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps, PngImagePlugin

from caspl.images import open_image as open_any
from prompted_clip import preprocess
from prompted_clip.preprocess import to_pixels, upright_array, upright_rgb
from service.images.decoder import open_image
from service.images.preprocessing import Exact
from service.settings import Settings
from training.data.views import Views

LIMITS = Settings(
    max_image_bytes=2_000_000,
    max_image_pixels=1_000_000,
    max_image_side_px=4_096,
    max_image_aspect=20,
    max_image_scans=100,
)
PREPROCESS = {"size": [32, 32], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
EXIF_ORIENTATION = 0x0112


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(5).integers(0, np.iinfo(dtype).max, (40, 56, *shape), dtype=dtype, endpoint=True)


def turned(orientation):
    """EXIF metadata with an orientation."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


def palette_picture():
    image = Image.fromarray(noise() % 16).convert("P")
    image.putpalette(noise(3).ravel()[: 3 * 256].tolist())
    return image


FILES = {
    "1": (lambda: Image.fromarray(noise() > 127), "PNG", {}),
    "L": (lambda: Image.fromarray(noise()), "PNG", {}),
    "L with a transparent grey": (lambda: Image.fromarray(noise() // 64), "PNG", {"transparency": 2}),
    "LA": (lambda: Image.fromarray(noise(2)), "PNG", {}),
    "P": (palette_picture, "PNG", {}),
    "P with a transparent colour": (palette_picture, "PNG", {"transparency": 3}),
    "P with alpha for each colour": (palette_picture, "PNG", {"transparency": bytes(range(0, 256, 16))}),
    "RGB": (lambda: Image.fromarray(noise(3)), "PNG", {}),
    "RGBA": (lambda: Image.fromarray(noise(4)), "PNG", {}),
    "RGBA as WEBP": (lambda: Image.fromarray(noise(4)), "WEBP", {"lossless": True, "exact": True}),
    "I;16": (lambda: Image.fromarray(noise(dtype=np.uint16)), "PNG", {}),
    "CMYK": (lambda: Image.fromarray(noise(4)[..., :3]).convert("CMYK"), "JPEG", {}),
    "L as JPEG": (lambda: Image.fromarray(noise()), "JPEG", {}),
    "RGBA turned": (lambda: Image.fromarray(noise(4)), "PNG", {"exif": turned(6)}),
    "I;16 turned": (lambda: Image.fromarray(noise(dtype=np.uint16)), "PNG", {"exif": turned(5)}),
} | {
    f"RGB with orientation {value}": (lambda: Image.fromarray(noise(3)), "JPEG", {"exif": turned(value)})
    for value in (1, 2, 3, 4, 5, 6, 7, 8, 99)
}


@pytest.mark.parametrize("name", FILES)
def test_training_and_service_see_the_same_pixels(tmp_path, name):
    make, kind, options = FILES[name]
    path = tmp_path / f"image.{kind.lower()}"
    make().save(path, kind, **options)
    with Image.open(path) as opened:
        assert opened.mode == name.split()[0] or kind == "WEBP" or name == "L as JPEG"
    views = Views([path], image_size=32, preprocess=PREPROCESS, augmentation="none", crop_scale_min=1.0, seed=1)
    resize, _ = open_image(path.read_bytes(), LIMITS, Exact(32, PREPROCESS).decode)
    np.testing.assert_array_equal(views.load([0], epoch=0)[0].numpy(), resize())


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_undone(tmp_path, value):
    Image.fromarray(noise(3)).save(tmp_path / "image.png", exif=turned(value))
    with Image.open(tmp_path / "image.png") as image:
        np.testing.assert_array_equal(upright_rgb(image), ImageOps.exif_transpose(image))


def in_one_piece(image):
    """The whole image rotated, then converted."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("n_rows", [1, 7, 39, 40])
def test_an_image_converted_in_strips_has_the_pixels_of_one_converted_whole(monkeypatch, name, n_rows):
    make, kind, options = FILES[name]
    file = io.BytesIO()
    make().save(file, kind, **options)
    with Image.open(file) as image:
        expected = np.asarray(in_one_piece(image))
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", n_rows * image.width)
    for convert in (upright_rgb, upright_array):
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(convert(image)), expected)


@pytest.mark.parametrize("value", range(2, 9))
def test_an_array_is_rotated_as_an_image_is(value):
    image = Image.fromarray(noise(3))
    image.info["exif"] = turned(value).tobytes()
    turn = preprocess.exif_turn(image)
    np.testing.assert_array_equal(preprocess.turned(np.asarray(image), turn), np.asarray(image.transpose(turn)))


def test_the_classifier_opens_a_png_with_large_compressed_text():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    file = io.BytesIO()
    Image.fromarray(noise(3)).save(file, "PNG", pnginfo=info)
    np.testing.assert_array_equal(np.asarray(open_any(file.getvalue())), noise(3))


def test_a_picture_that_is_upright_rgb_already_is_not_copied():
    image = Image.fromarray(noise(3))
    assert upright_rgb(image) is image


def test_grey_of_more_than_eight_bits_is_scaled_in_either_of_pillows_modes():
    grey = noise(dtype=np.uint16)
    for stored in (grey, grey.astype(np.int32)):
        image = Image.fromarray(stored)
        assert image.mode in {"I;16", "I"}
        np.testing.assert_array_equal(np.asarray(upright_rgb(image)), np.repeat((grey >> 8)[..., None], 3, axis=-1))


def test_alpha_is_laid_on_white():
    image = Image.fromarray(np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 128]]], dtype=np.uint8))
    clear, solid, half = np.asarray(upright_rgb(image))[0].astype(int)
    assert clear.tolist() == [255, 255, 255]
    assert solid.tolist() == [200, 100, 0]
    np.testing.assert_allclose(half, 255 + (np.array([200, 100, 0]) - 255) * 128 / 255, atol=1)


def test_the_picture_outlives_its_file(tmp_path):
    Image.fromarray(noise(3)).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as opened:
        image = upright_rgb(opened)
    np.testing.assert_array_equal(np.asarray(image), noise(3))


SIDES = st.integers(1, 90) | st.sampled_from([31, 32, 33, 63, 64, 65])


@settings(max_examples=150, deadline=None)
@given(
    width=SIDES,
    height=SIDES,
    image_size=st.sampled_from([16, 31, 32]),
    mode=st.sampled_from([None, "shortest", "squash"]),
    filter_name=st.sampled_from([None, "bicubic", "bilinear"]),
)
def test_the_pixels_are_those_of_open_clip_s_own_transform(width, height, image_size, mode, filter_name):
    chosen = {"resize_mode": mode, "interpolation": filter_name}
    values = {"mean": (0.5,) * 3, "std": (0.5,) * 3} | {name: value for name, value in chosen.items() if value}
    pixels = np.random.default_rng(width * 91 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    transform = image_transform_v2(PreprocessCfg(**values, size=image_size), is_train=False)
    expected = (transform(image) * 0.5 + 0.5).mul(255).round().byte().numpy()
    assert np.array_equal(to_pixels(image, image_size, values), expected)
