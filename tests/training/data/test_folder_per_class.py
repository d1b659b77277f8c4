"""Folders of class folders, with and without split folders."""

import pytest

from tests.training.data.tiny_images import draw_all, relative, write
from training.data.folder_per_class import read_class_folders
from training.errors import ClassListError, DatasetError


def test_class_folders_form_one_split_sorted_by_name(tmp_path):
    draw_all(tmp_path, "wolf/b.jpg", "wolf/a.jpg", "red_fox/deep/down/c.png")
    dataset = read_class_folders(tmp_path)
    assert dataset.name == tmp_path.name
    assert dataset.class_names == ("red fox", "wolf")
    assert list(dataset.splits) == ["train"]
    assert relative(dataset, "train") == [
        ("red_fox/deep/down/c.png", "red fox"),
        ("wolf/a.jpg", "wolf"),
        ("wolf/b.jpg", "wolf"),
    ]


def test_the_single_split_can_be_the_test_split(tmp_path):
    dataset = read_class_folders(draw_all(tmp_path, "fox/a.jpg"), single_split="test", template="{}.")
    assert list(dataset.splits) == ["test"]
    assert dataset.template == "{}."


def test_split_folders_form_splits(tmp_path):
    draw_all(tmp_path, "train/fox/a.jpg", "train/wolf/b.jpg", "val/fox/c.jpg", "test/wolf/d.jpg")
    (tmp_path / "notes").mkdir()
    dataset = read_class_folders(tmp_path)
    assert dataset.class_names == ("fox", "wolf")
    assert relative(dataset, "train") == [("train/fox/a.jpg", "fox"), ("train/wolf/b.jpg", "wolf")]
    assert relative(dataset, "val") == [("val/fox/c.jpg", "fox")]
    assert relative(dataset, "test") == [("test/wolf/d.jpg", "wolf")]


def test_a_class_list_gives_the_order_of_labels(tmp_path):
    draw_all(tmp_path, "train/red_fox/a.jpg", "train/wolf/b.jpg", "train/bear/c.jpg")
    write(tmp_path / "classes.txt", "Wolf\nred fox\nbear\n")
    dataset = read_class_folders(tmp_path)
    assert dataset.class_names == ("Wolf", "red fox", "bear")
    assert [name for _, name in relative(dataset, "train")] == ["Wolf", "red fox", "bear"]


def test_a_split_without_class_folders_is_ignored(tmp_path):
    draw_all(tmp_path, "train/00.png", "train/01.png", "test/fox/a.png")
    write(tmp_path / "classes.txt", "wolf\nfox\n")
    dataset = read_class_folders(tmp_path)
    assert list(dataset.splits) == ["test"]
    assert dataset.class_names == ("wolf", "fox")
    assert dataset.split("test")[0].label == 1


def test_an_empty_class_folder_is_rejected(tmp_path):
    draw_all(tmp_path, "fox/a.jpg")
    (tmp_path / "wolf").mkdir()
    with pytest.raises(DatasetError, match="'wolf' have none"):
        read_class_folders(tmp_path)


def test_a_class_in_the_test_split_only_is_rejected(tmp_path):
    with pytest.raises(DatasetError, match="at least one train image; 'wolf' have none"):
        read_class_folders(draw_all(tmp_path, "train/fox/a.jpg", "test/wolf/b.jpg"))


@pytest.mark.parametrize("names", [("red_fox/a.jpg", "Red fox/b.jpg"), ("train/red_fox/a.jpg", "test/red fox/b.jpg")])
def test_duplicate_class_folders_are_rejected(tmp_path, names):
    with pytest.raises(DatasetError) as refused:
        read_class_folders(draw_all(tmp_path, *names))
    for name in names:
        assert repr(name.split("/")[-2]) in str(refused.value)


def test_images_next_to_class_folders_are_rejected(tmp_path):
    with pytest.raises(DatasetError, match=r"contains images .* next to class folders \(fox\)"):
        read_class_folders(draw_all(tmp_path, "fox/a.jpg", "stray.jpg"))


def test_a_class_named_train_is_ambiguous(tmp_path):
    with pytest.raises(DatasetError, match=r"split folders train and other folders with images \(bus\)"):
        read_class_folders(draw_all(tmp_path, "train/a.jpg", "bus/b.jpg"))


@pytest.mark.parametrize("names", [(), ("a.jpg",), ("train/a.jpg", "test/b.jpg")])
def test_a_folder_without_class_folders_has_no_labels(tmp_path, names):
    with pytest.raises(DatasetError, match="no class folders in"):
        read_class_folders(draw_all(tmp_path, *names))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"No such folder: .*absent"):
        read_class_folders(tmp_path / "absent")


def test_a_class_list_without_a_folder_is_rejected(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "wolf/b.jpg")
    write(tmp_path / "classes.txt", "fox\n")
    with pytest.raises(DatasetError, match=r"classes\.txt does not list the class folders wolf"):
        read_class_folders(tmp_path)


def test_an_ambiguous_class_list_is_rejected(tmp_path):
    draw_all(tmp_path, "fox/a.jpg")
    write(tmp_path / "classes.txt", "fox\nFox\n")
    with pytest.raises(ClassListError, match="twice"):
        read_class_folders(tmp_path)


def test_the_demo_domains_folders_are_read_as_written(tmp_path):
    from training.demo.folders import write_folders
    from training.demo.world import CLASS_NAMES

    write_folders("sketch", tmp_path / "sketch", n_train=2, n_test=3)
    dataset = read_class_folders(tmp_path / "sketch")
    assert dataset.class_names == tuple(CLASS_NAMES)
    assert list(dataset.splits) == ["test"]
    assert len(dataset.split("test")) == 3
