"""Folders of unlabelled images: what is read, what is set aside, what is seen."""

import numpy as np
import pytest
import torch
from PIL import Image

from prompted_clip import to_pixels
from training.data.images import find_images
from training.data.views import Views
from training.errors import NoImagesError

PREPROCESS = {"size": [32, 32], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("b.png", "a.jpg", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def views(folder, augmentation="crop-flip", seed=1):
    return Views(
        find_images(folder).files,
        image_size=32,
        preprocess=PREPROCESS,
        augmentation=augmentation,
        crop_scale_min=0.3,
        seed=seed,
    )


def test_images_are_found_in_subfolders_and_sorted(folder):
    found = find_images(folder)
    assert [path.name for path in found.files] == ["a.jpg", "b.png", "c.webp"]
    assert found.unreadable == ()


def test_damaged_images_are_set_aside_and_named(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    whole = (folder / "b.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    found = find_images(folder)
    assert [path.name for path in found.unreadable] == ["broken.jpg", "cut.png"]
    assert len(found.files) == 3


def test_the_digest_follows_names_and_contents_but_not_the_folders_place(folder, tmp_path_factory):
    before = find_images(folder).digest
    import shutil

    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, moved)
    assert find_images(moved).digest == before
    (folder / "b.png").rename(folder / "z.png")
    assert find_images(folder).digest != before


@pytest.mark.parametrize("make", [lambda p: p / "absent", lambda p: p])
def test_no_readable_image_is_an_error_that_names_the_folder(tmp_path, make):
    with pytest.raises(NoImagesError, match=tmp_path.name):
        find_images(make(tmp_path))


def test_views_without_augmentation_are_the_served_pixels(folder):
    loaded = views(folder, "none").load([0], epoch=3)
    with Image.open(folder / "a.jpg") as image:
        assert torch.equal(loaded[0], torch.from_numpy(to_pixels(image.convert("RGB"), 32, PREPROCESS)))


def test_random_views_depend_on_seed_epoch_and_image_only(folder):
    one = views(folder).load([0, 1, 2], epoch=1)
    assert torch.equal(one, views(folder).load([0, 1, 2], epoch=1))
    assert torch.equal(one[2], views(folder).load([2], epoch=1)[0])
    assert not torch.equal(one, views(folder).load([0, 1, 2], epoch=2))
    assert not torch.equal(one, views(folder, seed=2).load([0, 1, 2], epoch=1))


def test_each_epoch_visits_every_image_once_in_another_order(folder):
    seen = views(folder)
    orders = [seen.order(epoch).tolist() for epoch in range(6)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
