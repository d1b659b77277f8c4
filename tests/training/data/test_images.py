"""Folders of unlabelled images, and views."""

import os
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from prompted_clip.preprocess import to_pixels
from training.data.images import find_images, is_decodable, n_decoding_threads, read_in_threads
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
    assert found.notes == ("1 file not read: 1 .txt",)


def test_damaged_images_are_reported(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    whole = (folder / "b.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    found = find_images(folder)
    assert [path.name for path in found.unreadable] == ["broken.jpg", "cut.png"]
    assert len(found.files) == 3


def test_the_digest_depends_on_names_and_contents_but_not_on_the_location(folder, tmp_path_factory):
    before = find_images(folder).digest
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, moved)
    assert find_images(moved).digest == before
    (folder / "b.png").rename(folder / "z.png")
    assert find_images(folder).digest != before


def test_hidden_files_and_folders_are_ignored(folder):
    before = find_images(folder)
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "b.png", folder / ".ipynb_checkpoints/b-checkpoint.png")
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7 not an image")
    found = find_images(folder)
    assert found == before
    assert found.notes == ("2 files not read: 1 .txt, 1 hidden; 1 folder not read: 1 .ipynb_checkpoints",)


def test_images_of_several_split_folders_are_named(tmp_path, folder):
    for name in ("Train/x.png", "holdout/y.png"):
        (folder / name).parent.mkdir()
        shutil.copy(folder / "b.png", folder / name)
    assert find_images(folder).notes[0] == "images of the split folders Train, holdout are all used"
    assert len(find_images(folder / "Train").notes) == 0


def test_a_folder_without_images_counts_what_it_contains(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(NoImagesError, match=r"1 file not read: 1 \.gif"):
        find_images(tmp_path)


def test_tiffs_are_read_unless_they_have_several_pages_or_no_one_conversion_to_8_bits(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    grey = Image.fromarray(pixels)
    Image.fromarray(pixels.astype(np.uint16) * 1000).save(tmp_path / "deep.tif")
    grey.save(tmp_path / "grey.tif")
    grey.convert("RGB").save(tmp_path / "colour.tiff")
    grey.convert("P").save(tmp_path / "palette.bmp")
    sound = ["colour.tiff", "deep.tif", "grey.tif", "palette.bmp"]
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[grey])
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(pixels.astype(np.int32) * 100_000).save(tmp_path / "wide.tif")
    found = find_images(tmp_path)
    assert [path.name for path in found.files] == sound
    assert [path.name for path in found.unreadable] == ["float.tif", "pages.tif", "wide.tif"]


def test_a_png_with_large_compressed_text_is_readable(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    path = tmp_path / "text.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    assert is_decodable(path)
    views = Views([path], image_size=8, preprocess={}, augmentation="none", crop_scale_min=1.0, seed=1)
    assert views.load([0], epoch=0).shape == (1, 3, 8, 8)


def test_a_hidden_root_folder_is_read(folder):
    hidden = folder / ".kept"
    shutil.copytree(folder / "sub", hidden)
    assert [path.name for path in find_images(hidden).files] == ["c.webp"]


def test_a_file_name_that_is_not_utf8_is_read_and_changes_the_digest(folder):
    before = find_images(folder)
    strange = folder / os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(folder / "b.png", strange)
    except OSError:
        pytest.skip("this file system refuses such names")
    found = find_images(folder)
    assert len(found.files) == 4
    strange.rename(folder / os.fsdecode(b"caf\xe8.png"))
    assert len({before.digest, found.digest, find_images(folder).digest}) == 3


def test_images_are_sorted_by_path_parts(tmp_path, folder):
    for name in ("a-b/x.png", "a/y.png"):
        (folder / name).parent.mkdir()
        shutil.copy(folder / "b.png", folder / name)
    found = [path.relative_to(folder).as_posix() for path in find_images(folder).files]
    assert found == ["a/y.png", "a-b/x.png", "a.jpg", "b.png", "sub/c.webp"]


def test_progress_counts_files_and_ends_at_the_total(folder):
    for index in range(130):
        shutil.copy(folder / "b.png", folder / f"copy{index}.png")
    calls = []
    find_images(folder, lambda done, total: calls.append((done, total, threading.get_ident())))
    assert calls == [(done, 133, threading.get_ident()) for done in (64, 128, 133)]


def test_reading_in_threads_keeps_the_order_and_raises_errors(folder):
    paths = [folder / f"{index}.txt" for index in range(100)]
    for path in paths:
        path.write_text(path.stem)
    assert read_in_threads(lambda path: int(path.read_text()), paths) == list(range(100))
    with pytest.raises(FileNotFoundError):
        read_in_threads(lambda path: path.read_text(), [*paths, folder / "absent.txt"])


def test_truncated_images_do_not_decode(folder):
    assert is_decodable(folder / "b.png")
    whole = (folder / "b.png").read_bytes()
    for n_bytes in (0, 8, 20, 40, len(whole) // 2):
        (folder / "cut.png").write_bytes(whole[:n_bytes])
        assert not is_decodable(folder / "cut.png")
    assert not is_decodable(folder / "absent.png")


def test_the_number_of_threads_follows_the_cpu_affinity():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("processors cannot be chosen here")
    allowed = os.sched_getaffinity(0)
    assert n_decoding_threads() == min(8, len(allowed))
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert n_decoding_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("make", [lambda p: p / "absent", lambda p: p])
def test_no_readable_image_is_an_error(tmp_path, make):
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


def test_each_epoch_visits_every_image_once_in_a_different_order(folder):
    seen = views(folder)
    orders = [seen.order(epoch).tolist() for epoch in range(6)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
