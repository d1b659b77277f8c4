"""Images held out of training: how many, which, and the line about them."""

from collections import Counter
from pathlib import Path

import pytest

from training.data.dataset import Dataset, LabelledImage
from training.data.hold_out import MAX_HELD_OUT, describe_held_out, hold_out, hold_out_per_class


def dataset(*counts, **splits):
    images = tuple(
        LabelledImage(Path(f"/d/{label}/{i}.png"), label) for label, n in enumerate(counts) for i in range(n)
    )
    names = tuple(f"class {label}" for label in range(len(counts)))
    return Dataset("d", Path("/d"), names, {"train": images, **splits})


@pytest.mark.parametrize(
    ("n_images", "fraction", "expected"),
    [(100, 0.1, 10), (6, 0.1, 1), (1, 0.1, 0), (100, 0, 0), (100, 0.25, 25), (10**5, 0.1, MAX_HELD_OUT)],
)
def test_a_tenth_of_unlabelled_images_is_held_out_within_limits(n_images, fraction, expected):
    trained, held_out = hold_out(n_images, fraction, seed=1)
    assert len(held_out) == expected
    assert sorted(trained + held_out) == list(range(n_images))


def test_the_seed_selects_the_held_out_images():
    assert hold_out(100, 0.1, seed=1) == hold_out(100, 0.1, seed=1) != hold_out(100, 0.1, seed=2)
    assert hold_out_per_class(dataset(20, 20), 0.1, 1) == hold_out_per_class(dataset(20, 20), 0.1, 1)


def test_a_tenth_of_each_class_is_held_out_at_least_one_image():
    divided = hold_out_per_class(dataset(30, 16, 4, 2), 0.1, seed=1)
    assert Counter(image.label for image in divided.split("val")) == {0: 3, 1: 2, 2: 1, 3: 1}
    whole = {image.path for image in dataset(30, 16, 4, 2).split("train")}
    parts = [image.path for split in ("train", "val") for image in divided.split(split)]
    assert sorted(parts) == sorted(whole)


def test_a_class_with_one_image_keeps_it():
    divided = hold_out_per_class(dataset(1, 4), 0.1, seed=1)
    assert [image.label for image in divided.split("val")] == [1]
    assert "val" not in hold_out_per_class(dataset(1, 1), 0.1, seed=1).splits


def test_an_existing_val_split_is_used_and_dropped_without_hold_out():
    own = (LabelledImage(Path("/d/own.png"), 0),)
    assert hold_out_per_class(dataset(9, 9, val=own), 0.1, seed=1).split("val") == own
    assert hold_out_per_class(dataset(9, 9, val=own), 0, seed=1) == dataset(9, 9)


def test_the_line_states_how_coarse_a_score_is_and_which_classes_have_none():
    assert describe_held_out(400, 3600) == "400 images held out, 3600 to train on."
    assert "one image is 25.0% of the score" in describe_held_out(4, 40)
    assert "No image to hold out in 2 classes: cat, dog." in describe_held_out(4, 40, ["cat", "dog"])
    assert "nothing checks" in describe_held_out(0, 40)
