"""Listing files and folders, and counting what is left out."""

import os
from collections import Counter

import pytest

from tests.training.data.tiny_images import draw_all, write
from training.data.listing import (
    SERVED_SUFFIXES,
    describe_left_out,
    find_missing,
    list_folders,
    list_images,
    scan_folder,
    suggest_root,
)


def names(folder, **options):
    return [path.relative_to(folder).as_posix() for path in list_images(folder, **options).images]


def test_images_are_sorted(tmp_path):
    draw_all(tmp_path, "b.png", "a/z.JPG", "a/b/c.jpeg", "c.webp", "d.bmp", "e.TIF")
    (tmp_path / "c.webp").rename(tmp_path / "c.jfif")
    assert names(tmp_path) == ["a/b/c.jpeg", "a/z.JPG", "b.png", "c.jfif", "d.bmp", "e.TIF"]
    assert names(tmp_path, suffixes=SERVED_SUFFIXES) == ["a/b/c.jpeg", "a/z.JPG", "b.png", "c.jfif"]


def test_every_file_that_is_not_read_is_counted_by_kind(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "fox/b.gif", "fox/deep/c.gif", "fox/.d.jpg", "fox/Thumbs.db.png")
    for name in ("fox/notes.txt", "Thumbs.db", ".DS_Store", "README", "odd.\x1b[31m"):
        write(tmp_path / name, "no image")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    listing = list_images(tmp_path)
    assert [path.name for path in listing.images] == ["Thumbs.db.png", "a.jpg"]
    assert listing.left_out == {
        ".gif": 2,
        ".txt": 1,
        "hidden": 1,
        ".DS_Store": 1,
        "Thumbs.db": 1,
        "other": 2,
        "broken link or special file": 3,
    }


@pytest.mark.parametrize(
    "name", ["@eaDir", "__MACOSX", ".git", "lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle"]
)
def test_system_folders_are_left_out_by_name_at_every_level(tmp_path, name):
    draw_all(tmp_path, "fox/a.jpg", f"fox/{name}/b.jpg", f"{name}/fox/c.jpg")
    assert names(tmp_path) == ["fox/a.jpg"]
    assert list_images(tmp_path).left_out[f"{name}/"] == 2
    assert name not in list_folders(tmp_path)


def test_left_out_files_and_folders_are_described_in_one_line():
    assert describe_left_out(Counter()) == ""
    assert describe_left_out(Counter({".gif": 1})) == "1 file not read: 1 .gif"
    found = Counter({".tif": 2, ".gif": 3, "@eaDir/": 4, ".git/": 1})
    assert describe_left_out(found) == "5 files not read: 3 .gif, 2 .tif; 5 folders not read: 4 @eaDir, 1 .git"
    mac = Counter({".DS_Store": 9, "Thumbs.db": 8, "hidden": 7, ".heic": 1, ".gif": 2})
    assert describe_left_out(mac) == "27 files not read: 2 .gif, 1 .heic, 9 .DS_Store, 8 Thumbs.db, 7 hidden"
    many = Counter({f".k{number}": 1 for number in range(7)})
    assert describe_left_out(many) == "7 files not read: 1 .k0, 1 .k1, 1 .k2, 1 .k3, 1 .k4 and 2 more"


def test_hidden_files_and_folders_are_not_listed(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "fox/.b.jpg", "fox/.trash/c.jpg", ".cache/d.jpg")
    assert names(tmp_path) == ["fox/a.jpg"]
    assert list_folders(tmp_path) == ("fox",)
    assert scan_folder(tmp_path / "fox").images == ("a.jpg",)
    assert scan_folder(tmp_path).images == ()


def test_links_to_folders_are_followed_inside_a_class_folder(tmp_path):
    draw_all(tmp_path, "elsewhere/fox/b.jpg", "data/fox/a.jpg")
    (tmp_path / "data/fox/more").symlink_to(tmp_path / "elsewhere/fox")
    (tmp_path / "data/wolf").symlink_to(tmp_path / "elsewhere/fox")
    assert list_folders(tmp_path / "data") == ("fox", "wolf")
    assert names(tmp_path / "data/fox") == ["a.jpg", "more/b.jpg"]
    assert names(tmp_path / "data/wolf") == ["b.jpg"]


def test_cycles_of_links_end_and_every_folder_is_read_once_under_its_own_path(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "fox/zoo/b.jpg", "wolf/c.jpg")
    (tmp_path / "fox/again").symlink_to(tmp_path / "fox")
    (tmp_path / "fox/other").symlink_to(tmp_path / "fox/zoo")
    (tmp_path / "fox/zoo/up").symlink_to(tmp_path)
    listing = list_images(tmp_path / "fox")
    assert [path.relative_to(tmp_path).as_posix() for path in listing.images] == ["fox/a.jpg", "fox/zoo/b.jpg"]
    assert describe_left_out(listing.left_out) == "3 folders not read: 3 repeated link"


def test_a_class_folder_that_links_to_the_data_set_is_not_read(tmp_path):
    draw_all(tmp_path, "fox/a.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list_images(tmp_path / "loop").images == ()
    assert names(tmp_path) == ["fox/a.jpg"]


def test_missing_files_are_listed_in_order(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "wolf/b.jpg")
    names = ["wolf/x.jpg", "fox/a.jpg", "bear/c.jpg", "fox/z.jpg", "wolf/b.jpg"]
    missing = find_missing(tmp_path / name for name in names)
    assert [path.relative_to(tmp_path).as_posix() for path in missing] == ["wolf/x.jpg", "bear/c.jpg", "fox/z.jpg"]


def test_the_data_folder_is_suggested_from_one_level_too_low_or_too_high(tmp_path):
    draw_all(tmp_path, "data/dtd/images/a.jpg")
    for wrong in ("data/dtd", "data/dtd/images", "."):
        expected = "" if wrong == "data/dtd/images" else f" Pass {tmp_path / 'data'} instead, which contains dtd/."
        assert suggest_root(tmp_path / wrong, "dtd") == expected
    assert suggest_root(tmp_path / "data", "dtd") == ""
    assert suggest_root(tmp_path / "absent", "eurosat") == ""
