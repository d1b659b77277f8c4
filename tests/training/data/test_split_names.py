"""Split names as people spell them."""

import pytest

from training.data.split_names import describe_spellings, split_of


@pytest.mark.parametrize(
    ("split", "spellings"),
    [
        (
            "train",
            ["train", "Train", "TRAIN", "training", "train_set", "TrainSet", "01-train", "train2017", "trainval"],
        ),
        ("val", ["val", "Valid", "validation", "VALIDATION images", "dev", "dev_split", "images_val"]),
        ("test", ["test", "TEST", "testing", "test-set", "holdout", "hold-out", "Held Out", "eval", "test_data"]),
        (None, ["trainer", "latest", "contest", "images", "data", "set", "", "2017", "fox", "train_bus", "validator"]),
    ],
)
def test_splits_are_recognized_in_any_case_and_spelling(split, spellings):
    assert [split_of(name) for name in spellings] == [split] * len(spellings)


def test_only_other_spellings_are_described():
    assert describe_spellings({"train": "train", "test": "test"}) == ""
    assert describe_spellings({"train": "train", "dev": "val"}) == "dev: read as the split val"
    assert describe_spellings({"Train": "train", "Test": "test"}) == "Train, Test: read as the splits train, test"
