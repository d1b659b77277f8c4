"""Listing files and folders."""

from tests.training.data.tiny_images import draw_all, write
from training.data.listing import find_missing, has_images, list_folders, list_images


def test_images_are_sorted(tmp_path):
    draw_all(tmp_path, "b.png", "a/z.JPG", "a/b/c.jpeg", "c.webp")
    write(tmp_path / "a/notes.txt", "no image")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a/b/c.jpeg", "a/z.JPG", "b.png", "c.webp"]


def test_hidden_files_and_folders_are_not_listed(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "fox/.b.jpg", "fox/.trash/c.jpg", ".cache/d.jpg")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg"]
    assert list_folders(tmp_path) == ["fox"]
    assert has_images(tmp_path / "fox")
    assert not has_images(tmp_path)


def test_a_linked_folder_counts_as_a_folder(tmp_path):
    draw_all(tmp_path, "elsewhere/fox/a.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/fox").symlink_to(tmp_path / "elsewhere/fox")
    assert list_folders(tmp_path / "data") == ["fox"]
    assert [path.name for path in list_images(tmp_path / "data/fox")] == ["a.jpg"]


def test_missing_files_are_listed_in_order(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "wolf/b.jpg")
    names = ["wolf/x.jpg", "fox/a.jpg", "bear/c.jpg", "fox/z.jpg", "wolf/b.jpg"]
    missing = find_missing(tmp_path / name for name in names)
    assert [path.relative_to(tmp_path).as_posix() for path in missing] == ["wolf/x.jpg", "bear/c.jpg", "fox/z.jpg"]
