"""Folders of pictures to teach a domain with."""

import pytest

from tests.training.data.tiny_images import draw_all, write
from training.data.teaching_folder import read_teaching_folder
from training.errors import ClassListError, DatasetError


def found(root, class_list=None):
    """Labels and relative paths."""
    pictures = read_teaching_folder(root, class_list).pictures
    return [(label, path.relative_to(root).as_posix()) for label, path in pictures]


def test_folders_are_classes_and_their_pictures_are_labelled(tmp_path):
    draw_all(tmp_path, "red_fox/b.jpg", "red_fox/deep/a.png", "wolf/a.webp")

    assert found(tmp_path) == [("red fox", "red_fox/b.jpg"), ("red fox", "red_fox/deep/a.png"), ("wolf", "wolf/a.webp")]
    assert read_teaching_folder(tmp_path).class_names == ("red fox", "wolf")
    assert read_teaching_folder(tmp_path).notes == ()


def test_pictures_outside_class_folders_have_no_label(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "b.jpg", "Unlabelled/c.jpg")

    assert found(tmp_path) == [("fox", "fox/a.jpg"), (None, "b.jpg"), (None, "Unlabelled/c.jpg")]
    assert read_teaching_folder(tmp_path).class_names == ("fox",)


def test_pictures_alone_are_no_classes(tmp_path):
    read = read_teaching_folder(draw_all(tmp_path, "a.jpg"))

    assert ([label for label, _ in read.pictures], read.class_names) == ([None], ())


@pytest.mark.parametrize("name", ["classes.txt", "names/list.txt"])
def test_a_class_list_gives_order_and_further_classes(tmp_path, name):
    draw_all(tmp_path, "fox/a.jpg")
    write(tmp_path / name, "Fox\nbear\n")
    read = read_teaching_folder(tmp_path, None if name == "classes.txt" else tmp_path / name)

    assert read.class_names == ("Fox", "bear")
    assert read.pictures[0][0] == "Fox"


def test_a_class_list_must_have_every_class_folder(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "wolf/b.jpg")
    path = write(tmp_path / "list.txt", "fox\n")

    with pytest.raises(DatasetError, match=r"list\.txt does not list the class folders wolf"):
        read_teaching_folder(tmp_path, path)


def test_a_missing_class_list_is_an_error(tmp_path):
    draw_all(tmp_path, "fox/a.jpg")

    with pytest.raises(ClassListError, match=r"gone\.txt"):
        read_teaching_folder(tmp_path, tmp_path / "gone.txt")


def test_files_that_the_service_does_not_accept_are_counted(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "fox/b.bmp")
    write(tmp_path / "notes.md", "text")
    write(tmp_path / "classes.txt", "fox")
    (tmp_path / "wolf").mkdir()
    (tmp_path / "@eaDir").mkdir()
    write(tmp_path / "classes.txt", "fox\nwolf\n")

    assert read_teaching_folder(tmp_path).notes == (
        "2 files not read: 1 .bmp, 1 .md; 1 folder not read: 1 @eaDir. "
        "Convert pictures in other formats first, for example with ImageMagick: mogrify -format jpg FILE",
        "class folders without pictures: wolf",
    )


def test_files_that_are_no_pictures_need_no_conversion(tmp_path):
    draw_all(tmp_path, "fox/a.jpg")
    write(tmp_path / "fox" / "notes.md", "text")
    assert read_teaching_folder(tmp_path).notes == ("1 file not read: 1 .md",)


def test_a_level_of_another_layout_is_an_error_with_the_folder_to_pass(tmp_path):
    draw_all(tmp_path, "pets/fox/a.jpg", "pets/wolf/b.jpg")

    with pytest.raises(DatasetError, match=rf"found no images in pets but the folders .* Pass {tmp_path}/pets"):
        read_teaching_folder(tmp_path)


def test_split_folders_are_an_error_with_the_folder_to_pass(tmp_path):
    draw_all(tmp_path, "train/fox/a.jpg", "train/b.jpg", "cat/c.jpg", "test/fox/d.jpg", "test/e.jpg")

    with pytest.raises(DatasetError, match=rf"split folders test, train\. Pass one of them, such as {tmp_path}/train"):
        read_teaching_folder(tmp_path)


def test_a_class_may_have_the_name_of_a_split_if_the_class_list_has_it(tmp_path):
    draw_all(tmp_path, "train/a.jpg", "bus/b.jpg")
    write(tmp_path / "classes.txt", "train\nbus\n")

    assert [label for label, _ in found(tmp_path)] == ["bus", "train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "found no pictures"),
        (("fox/a.jpg", "Fox/b.jpg"), "Fox"),
        (("fox\u202e/a.jpg",), "must not contain control"),
    ],
)
def test_other_folders_are_errors(tmp_path, names, message):
    draw_all(tmp_path, *names)

    with pytest.raises((DatasetError, ClassListError), match=message):
        read_teaching_folder(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="No such folder"):
        read_teaching_folder(tmp_path / "gone")


def test_the_same_picture_in_two_classes_is_an_error_that_names_both_files(tmp_path):
    draw_all(tmp_path, "fox/a.png", "fox/b.png", "wolf/c.png")
    for number in range(22):
        write(tmp_path / "fox" / f"{number:02}.png", f"{number:02}")
        write(tmp_path / "wolf" / f"{number:02}.png", f"{number:02}")

    with pytest.raises(DatasetError) as caught:
        read_teaching_folder(tmp_path)
    assert f"found the same picture in two: {tmp_path}/fox/00.png and {tmp_path}/wolf/00.png; " in str(caught.value)
    assert str(caught.value).endswith("; and 2 more. Keep one of the two.")


def test_the_same_picture_twice_in_a_class_or_without_a_label_is_no_error_nor_are_empty_files(tmp_path):
    draw_all(tmp_path, "fox/a.png", "wolf/b.png")
    for copy in ("fox/again.png", "unlabelled/a.png", "a.png"):
        write(tmp_path / copy, "").write_bytes((tmp_path / "fox/a.png").read_bytes())
    write(tmp_path / "fox" / "empty.png", "")
    write(tmp_path / "wolf" / "empty.png", "")

    assert len(read_teaching_folder(tmp_path).pictures) == 7
