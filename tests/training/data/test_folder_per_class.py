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
    dataset = read_class_folders(draw_all(tmp_path, "fox/a.jpg", "wolf/b.jpg"), single_split="test", template="{}.")
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
    assert dataset.notes == ()


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
    assert dataset.notes == (f"images in {tmp_path / 'train'} are not read, because they are in no class folder (2)",)


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


@pytest.mark.parametrize(
    ("train", "test", "note"),
    [
        ("Train", "Test", "Test, Train: read as the splits test, train"),
        ("TRAIN", "test", "TRAIN: read as the split train"),
        ("training", "holdout", "holdout, training: read as the splits test, train"),
        ("train_set", "test-images", "test-images, train_set: read as the splits test, train"),
    ],
)
def test_split_folders_are_recognized_in_any_spelling_and_noted(tmp_path, train, test, note):
    draw_all(tmp_path, *(f"{split}/{name}/a.jpg" for split in (train, test) for name in ("fox", "wolf")))
    dataset = read_class_folders(tmp_path)
    assert dataset.class_names == ("fox", "wolf")
    assert relative(dataset, "train") == [(f"{train}/fox/a.jpg", "fox"), (f"{train}/wolf/a.jpg", "wolf")]
    assert len(dataset.split("test")) == 2
    assert dataset.notes == (note,)


def test_two_folders_for_one_split_are_rejected(tmp_path):
    with pytest.raises(DatasetError, match="several folders for one split: train, training"):
        read_class_folders(draw_all(tmp_path, "train/fox/a.jpg", "training/fox/b.jpg", "train/wolf/a.jpg"))


def test_a_class_list_that_names_the_split_folders_makes_them_classes(tmp_path):
    draw_all(tmp_path, "train/a.jpg", "bus/b.jpg")
    write(tmp_path / "classes.txt", "bus\ntrain\n")
    assert read_class_folders(tmp_path).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("names", "found", "advice"),
    [
        (["top/fox/a.jpg", "top/wolf/b.jpg"], "found no images in top but the folders fox, wolf", "Pass {root}/top if"),
        (["a/b/c/fox/a.jpg", "a/b/c/wolf/b.jpg"], "no images in a but the folders b", "Pass {root}/a/b/c if"),
        (["top/Train/fox/a.jpg", "top/Test/fox/b.jpg"], "no images in top but the folders Test, Train", "/top if that"),
        (["2019/fox/a.jpg", "2020/fox/b.jpg"], "found no images in 2019, 2020 but the folders fox", "list them in"),
        (["fold1/fox/a.jpg", "fold2/wolf/b.jpg"], "no images in fold1, fold2 but the folders fox, wolf", "list them"),
        (
            ["fox/train/a.jpg", "fox/test/b.jpg", "wolf/train/c.jpg", "wolf/test/d.jpg"],
            "no images in fox, wolf but the folders",
            "move the split folders above the classes ({root}/test/fox)",
        ),
        (["bear/x.jpg", "2019/fox/a.jpg", "2020/fox/b.jpg"], "found no images in 2019, 2020", "list them in"),
        (["train/2019/fox/a.jpg", "train/2020/fox/b.jpg", "test/2019/fox/c.jpg"], "no images in 2019", "list them in"),
    ],
)
def test_folders_that_are_not_classes_but_another_level_are_rejected(tmp_path, names, found, advice):
    with pytest.raises(DatasetError) as refused:
        read_class_folders(draw_all(tmp_path, *names))
    assert found in str(refused.value)
    assert advice.format(root=tmp_path) in str(refused.value)
    assert "/<class>/*.jpg" in str(refused.value)


def test_classes_in_a_class_list_may_contain_folders_only(tmp_path):
    draw_all(tmp_path, "fox/day/a.jpg", "wolf/day/b.jpg")
    write(tmp_path / "classes.txt", "fox\nwolf\n")
    dataset = read_class_folders(tmp_path)
    assert dataset.class_names == ("fox", "wolf")
    assert dataset.notes == ("images in subfolders of class folders are read as images of the class (2, in day)",)


def test_one_class_is_an_error_that_names_the_folder_above(tmp_path):
    draw_all(tmp_path, "animals/fox/a.jpg", "animals/wolf/b.jpg", "animals/fox/pups/c.jpg", "pets/cat/a.jpg")
    with pytest.raises(DatasetError, match="one class folder only, cat; at least two"):
        read_class_folders(tmp_path / "pets")
    with pytest.raises(DatasetError) as refused:
        read_class_folders(tmp_path / "animals/fox/pups")
    assert "A flat folder of images has no labels" in str(refused.value)
    with pytest.raises(DatasetError) as refused:
        read_class_folders(tmp_path / "animals/wolf")
    assert str(refused.value).endswith(f"If {tmp_path / 'animals/wolf'} is one class of several (fox, wolf), pass "
                                       f"{tmp_path / 'animals'}.")  # fmt: skip


def test_a_class_folder_inside_a_split_folder_suggests_the_folder_of_the_splits(tmp_path):
    draw_all(tmp_path, "train/fox/a.jpg", "train/wolf/b.jpg")
    with pytest.raises(DatasetError, match=f"pass {tmp_path}."):
        read_class_folders(tmp_path / "train/fox")


def test_files_that_are_not_read_are_counted_in_one_note(tmp_path):
    draw_all(
        tmp_path, "train/fox/a.jpg", "train/fox/b.gif", "train/wolf/c.tif", "test/fox/@eaDir/a.jpg", "test/fox/d.jpg"
    )
    draw_all(tmp_path, "__MACOSX/train/fox/a.jpg")
    for name in ("README.md", "classes.txt", "train/list.csv", "notes/x.txt", "test/.DS_Store"):
        write(tmp_path / name, "fox\nwolf\n")
    dataset = read_class_folders(tmp_path)
    assert relative(dataset, "train") == [("train/fox/a.jpg", "fox"), ("train/wolf/c.tif", "wolf")]
    assert dataset.notes == (
        "5 files not read: 1 .csv, 1 .gif, 1 .md, 1 .txt, 1 .DS_Store; 2 folders not read: 1 @eaDir, 1 __MACOSX",
    )


def test_an_error_about_missing_images_counts_the_files_that_are_not_read(tmp_path):
    draw_all(tmp_path, "fox/a.jpg", "wolf/@eaDir/b.jpg", "wolf/c.gif")
    with pytest.raises(DatasetError, match=r"'wolf' have none.* 1 file not read: 1 \.gif; 1 folder not read: 1 @eaDir"):
        read_class_folders(tmp_path)


def test_a_class_without_test_images_is_named(tmp_path):
    draw_all(tmp_path, "train/fox/a.jpg", "train/wolf/b.jpg", "test/fox/c.jpg")
    (tmp_path / "test/wolf").mkdir()
    assert read_class_folders(tmp_path).notes == ("class folders without images: test/wolf",)


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
    draw_all(tmp_path, "fox/a.jpg", "wolf/b.jpg")
    write(tmp_path / "classes.txt", "fox\nFox\nwolf\n")
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
