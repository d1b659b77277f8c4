"""Damaged files are dropped before training and reported."""

import threading
from dataclasses import replace

import pytest

from tests.training.data.tiny_images import draw, draw_all
from training.data.folder_per_class import read_class_folders
from training.data.readable import drop_unreadable
from training.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    names = [
        f"{split}/{name}/{index}.png" for split in ("train", "test") for name in ("fox", "wolf") for index in (0, 1)
    ]
    return draw_all(tmp_path, *names)


def cut(path):
    """Keep the header and half of the pixels: such a file opens, and fails when it is decoded."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def test_unreadable_files_are_dropped_and_listed(folder):
    bad = [cut(folder / "train/fox/1.png"), cut(folder / "test/wolf/0.png")]
    (folder / "test/fox/0.png").write_text("not an image")
    dataset = read_class_folders(folder)
    checked = drop_unreadable(dataset)
    assert set(checked.unreadable) == {*bad, folder / "test/fox/0.png"}
    for split, images in dataset.splits.items():
        assert checked.split(split) == tuple(image for image in images if image.path not in checked.unreadable)
    assert checked.class_names == dataset.class_names
    assert checked.digest != dataset.digest


def test_an_intact_data_set_is_returned_unchanged(folder):
    dataset = read_class_folders(folder)
    assert drop_unreadable(dataset, strict=True) is dataset


def test_only_the_given_splits_are_opened(folder):
    cut(folder / "train/fox/1.png")
    test_file = cut(folder / "test/fox/1.png")
    checked = drop_unreadable(read_class_folders(folder), ["test"])
    assert checked.unreadable == (test_file,)
    assert len(checked.split("train")) == 4
    assert len(checked.split("test")) == 3


def test_a_file_that_vanished_is_unreadable(folder):
    dataset = read_class_folders(folder)
    (folder / "train/wolf/0.png").unlink()
    assert drop_unreadable(dataset).unreadable == (folder / "train/wolf/0.png",)


def test_earlier_unreadable_files_stay_listed(folder):
    first, second = cut(folder / "train/fox/0.png"), cut(folder / "test/wolf/1.png")
    checked = drop_unreadable(drop_unreadable(read_class_folders(folder), ["train"]), ["test"])
    assert checked.unreadable == (first, second)


def test_strict_raises_an_error(folder):
    bad = cut(folder / "test/fox/1.png")
    with pytest.raises(DatasetError, match=r"1 of 8 images are unreadable: .*1\.png\. Replace or remove") as refused:
        drop_unreadable(read_class_folders(folder), strict=True)
    assert str(bad) in str(refused.value)


def test_a_class_that_loses_its_last_train_image_is_an_error(folder):
    for index in (0, 1):
        cut(folder / f"train/wolf/{index}.png")
    with pytest.raises(DatasetError, match=r"2 of 8 images are unreadable: .*Without them, .*'wolf' have none"):
        drop_unreadable(read_class_folders(folder))


def test_a_split_that_loses_all_its_images_is_an_error(folder):
    for path in (folder / "test").rglob("*.png"):
        cut(path)
    with pytest.raises(DatasetError, match=r"4 of 4 images are unreadable: .*No test images are left"):
        drop_unreadable(read_class_folders(folder), ["test"])


def test_progress_is_reported_from_the_calling_thread_and_ends_at_the_total(tmp_path):
    for index in range(130):
        draw(tmp_path / ("fox", "wolf")[index % 2] / f"{index:03d}.png", size=2)
    calls, threads = [], set()

    def note(done, total):
        calls.append((done, total))
        threads.add(threading.get_ident())

    drop_unreadable(read_class_folders(tmp_path), on_progress=note)
    assert calls == [(64, 130), (128, 130), (130, 130)]
    assert threads == {threading.get_ident()}


def test_an_image_listed_in_two_splits_is_opened_once(folder):
    dataset = read_class_folders(folder)
    doubled = replace(dataset, splits={"train": dataset.split("train"), "test": dataset.split("train")})
    calls = []
    drop_unreadable(doubled, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 4)]
