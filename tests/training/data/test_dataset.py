"""Validation and digest of labelled data sets."""

import os
import unicodedata
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from prompt_store.class_names import comparison_key, normalize_name
from tests.training.data.tiny_images import imagined
from training.data.dataset import Dataset, LabelledImage, shorten
from training.errors import DatasetError

ROOT = Path("data") / "here"


def test_class_names_are_normalized_and_keep_their_order():
    dataset = Dataset("d", ROOT, ("red_fox", " grey   wolf "), {"test": (LabelledImage(ROOT / "a.jpg", 1),)})
    assert dataset.class_names == ("red fox", "grey wolf")


def test_a_decomposed_name_becomes_the_composed_one():
    assert normalize_name(unicodedata.normalize("NFD", "crème_brûlée")) == "crème brûlée"


@pytest.mark.parametrize("other", ["red fox", "Red_Fox", "red  FOX", "\uff52\uff45\uff44 fox"])
def test_duplicate_names_are_rejected(other):
    images = {"test": (LabelledImage(ROOT / "a.jpg", 0),)}
    with pytest.raises(DatasetError) as refused:
        Dataset("d", ROOT, ("red_fox", "wolf", other), images)
    assert repr("red_fox") in str(refused.value)
    assert repr(other) in str(refused.value)


def test_names_that_differ_in_a_letter_are_distinct():
    assert comparison_key("fox") != comparison_key("foxes")


def test_splits_have_a_fixed_order_and_empty_ones_are_dropped():
    dataset = imagined(ROOT, {"test": [0], "val": [], "train": [0, 1]}, 2)
    assert list(dataset.splits) == ["train", "test"]


def test_a_split_without_images_is_an_error():
    dataset = imagined(ROOT, {"train": [0, 1], "test": [1]}, 2)
    assert [image.label for image in dataset.split("test")] == [1]
    with pytest.raises(DatasetError, match="has no val images, only train, test"):
        dataset.split("val")


def test_a_class_without_train_images_is_rejected():
    with pytest.raises(DatasetError, match=r"at least one train image; 'class 1', 'class 3' have none"):
        imagined(ROOT, {"train": [0, 2, 2], "test": [1, 3]}, 4)


def test_a_test_only_data_set_may_miss_classes():
    assert imagined(ROOT, {"test": [2]}, 3).class_names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_an_error(label):
    with pytest.raises(DatasetError, match=rf"label {label} of .*0\.jpg \(test\) is out of range"):
        imagined(ROOT, {"test": [label]}, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": ()}, "has no classes"),
        ({"class_names": ("fox", " _ ")}, "' _ ' is not a class name"),
        ({"splits": {"valid": ()}}, "unknown split 'valid'; use train, val, test"),
        ({"splits": {"train": ()}}, "no images in"),
        ({"template": "a photo."}, "the template 'a photo.' must contain {} for the class name"),
    ],
)
def test_an_invalid_data_set_is_rejected(fields, message):
    with pytest.raises(DatasetError) as refused:
        replace(imagined(ROOT, {"train": [0, 1]}, 2), **fields)
    assert message in str(refused.value)


def test_a_data_set_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        imagined(ROOT, {"train": [0]}, 1).name = "other"


def test_the_digest_does_not_depend_on_location_name_template_or_unreadable_files():
    dataset = imagined(ROOT, {"train": [0, 1], "test": [1]}, 2)
    elsewhere = imagined(Path("other"), {"train": [0, 1], "test": [1]}, 2, template="{}.", unreadable=(Path("x"),))
    assert dataset.digest == replace(elsewhere, name="renamed").digest
    assert dataset.digest.startswith("sha256:")
    assert len(dataset.digest) == len("sha256:") + 64


def test_the_digest_depends_on_classes_labels_paths_order_and_splits():
    dataset = imagined(ROOT, {"train": [0, 1, 0], "test": [1]}, 2)
    train = dataset.split("train")
    others = [
        replace(dataset, class_names=("class 0", "class one")),
        replace(dataset, splits={**dataset.splits, "test": (LabelledImage(dataset.split("test")[0].path, 0),)}),
        replace(dataset, splits={**dataset.splits, "test": (LabelledImage(ROOT / "b.jpg", 1),)}),
        replace(dataset, splits={**dataset.splits, "train": train[::-1]}),
        replace(dataset, splits={"train": train, "val": dataset.split("test")}),
        replace(dataset, splits={"train": train}),
    ]
    assert len({dataset.digest, *(other.digest for other in others)}) == 7


def test_the_digest_depends_on_file_sizes(tmp_path):
    def digest() -> str:
        return Dataset("d", tmp_path, ("fox",), {"test": (LabelledImage(tmp_path / "a.jpg", 0),)}).digest

    (tmp_path / "a.jpg").write_bytes(b"a picture")
    before = digest()
    assert digest() == before
    (tmp_path / "a.jpg").write_bytes(b"another picture")
    assert digest() != before


def test_the_digest_supports_files_outside_the_root_and_names_that_are_not_utf8():
    images = (LabelledImage(ROOT / ".." / "there" / "a.jpg", 0), LabelledImage(ROOT / os.fsdecode(b"\xff.jpg"), 0))
    digests = {
        Dataset(
            "d", root, ("fox",), {"test": tuple(LabelledImage(root / i.path.relative_to(ROOT), 0) for i in images)}
        ).digest
        for root in (ROOT, Path("elsewhere"))
    }
    assert len(digests) == 1


def test_a_long_list_is_truncated_with_a_count():
    assert shorten(range(5)) == "0, 1, 2, 3, 4"
    assert shorten(range(9)) == "0, 1, 2, 3, 4 and 4 more"
