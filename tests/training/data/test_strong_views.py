"""Strong views: reproducible, with operations of a chosen strength."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_backbone
from tests.training.data.tiny_images import draw
from training.data.strong_views import OPERATIONS, strong_view
from training.data.views import Views


def picture(size=32):
    rows = np.linspace(30, 220, size)[:, None, None] + np.linspace(-30, 30, size)[None, :, None]
    pixels = rows * [1.0, 0.8, 0.6]
    pixels[size // 4 : size // 2, size // 4 : size // 2] *= 0.5
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def views(files, augmentation, seed=1):
    return Views(
        files, image_size=32, preprocess=tiny_backbone().preprocess, augmentation=augmentation, crop_scale_min=0.5,
        seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_size_and_mode_and_grows_with_its_strength(name):
    image = picture()
    changed = [np.abs(np.asarray(OPERATIONS[name](image, strength), float) - image).mean() for strength in (0, 0.3, 1)]
    result = OPERATIONS[name](image, -0.7)
    assert (result.size, result.mode) == (image.size, "RGB")
    if name in {"autocontrast", "equalize"}:
        assert len(set(changed)) == 1
    else:
        assert changed[0] == 0
        assert changed[2] >= changed[1] > 0 or name == "posterize"
        assert changed[2] > 0


def test_the_generator_determines_a_view_and_leaves_the_image_as_it_was():
    image, before = picture(), np.asarray(picture())
    one, two, other = (np.asarray(strong_view(image, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.array_equal(np.asarray(image), before)


def test_a_strong_view_is_the_same_after_a_resume_and_new_in_every_epoch(tmp_path):
    files = [draw(tmp_path / f"{index}.png", 40) for index in range(5)]
    whole = views(files, "strong").load(range(5), 3)
    assert torch.equal(views(files, "strong").load([4, 2], 3), whole[[4, 2]])
    assert not torch.equal(views(files, "strong").load(range(5), 4), whole)
