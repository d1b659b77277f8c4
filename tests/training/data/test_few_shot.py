"""Few-shot samples against a transcription of the reference, and base-to-new splits."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.tiny_images import imagined
from training.data.few_shot import base_and_new, few_shot
from training.errors import DatasetError

ROOT = Path("data")


def drawn_by_the_reference(splits, shots, seed):
    """Dassl's draw as CoOp's data sets call it: the global generator, train first, then val with at most four."""
    random.seed(seed)
    result = []
    for split, wanted in (("train", shots), ("val", min(shots, 4))):
        groups = {}
        for item in splits[split]:
            groups.setdefault(item.label, []).append(item)
        chosen = []
        for items in groups.values():
            chosen.extend(random.sample(items, wanted) if len(items) >= wanted else items)
        result.append(tuple(chosen))
    return result


def shuffled_labels(n_per_class, seed):
    labels = [label for label, n in enumerate(n_per_class) for _ in range(n)]
    random.Random(seed).shuffle(labels)  # noqa: S311
    return labels


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_samples_match_the_reference(shots, seed):
    splits = {"train": shuffled_labels([30, 16, 5, 20], 7), "val": shuffled_labels([9, 2, 4, 3], 8), "test": [3, 0]}
    dataset = imagined(ROOT, splits, 4)
    sampled = few_shot(dataset, shots, seed=seed)
    train, val = drawn_by_the_reference(dataset.splits, shots, seed)
    assert sampled.split("train") == train
    assert sampled.split("val") == val
    assert sampled.split("test") == dataset.split("test")


def test_classes_with_fewer_images_keep_all_of_them():
    sampled = few_shot(imagined(ROOT, {"train": [0] * 20 + [1] * 3}, 2), 16, seed=1)
    labels = [image.label for image in sampled.split("train")]
    assert labels.count(0) == 16
    assert labels.count(1) == 3
    assert len({image.path for image in sampled.split("train")}) == 19


def test_the_sample_depends_on_the_seed_only():
    dataset = imagined(ROOT, {"train": [0, 1] * 40}, 2)
    first = few_shot(dataset, 4, seed=1)
    random.seed(99)
    before = random.getstate()
    assert few_shot(dataset, 4, seed=1).digest == first.digest
    assert random.getstate() == before
    assert few_shot(dataset, 4, seed=2).digest != first.digest


def test_sampling_before_and_after_the_split_differ():
    # Classes take turns in the file, so the stream has served other classes before a base class is drawn.
    dataset = imagined(ROOT, {"train": [3, 2, 1, 0] * 30}, 4)
    base, _ = base_and_new(few_shot(dataset, 4, seed=1))
    other = few_shot(base_and_new(dataset)[0], 4, seed=1)
    assert {image.label for image in base.split("train")} == {0, 1}
    assert base.digest != other.digest


def test_few_shot_requires_train_images_and_one_shot():
    with pytest.raises(DatasetError, match="has no train images"):
        few_shot(imagined(ROOT, {"test": [0]}, 1), 1, seed=1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        few_shot(imagined(ROOT, {"train": [0]}, 1), 0, seed=1)


@st.composite
def data_sets(draw):
    n_classes = draw(st.integers(2, 9))
    labels = st.integers(0, n_classes - 1)
    train = draw(st.permutations([*range(n_classes), *draw(st.lists(labels, max_size=12))]))
    return imagined(ROOT, {"train": train, "test": draw(st.lists(labels, max_size=12))}, n_classes)


@given(data_sets())
@settings(max_examples=60, deadline=None)
def test_base_and_new_partition_classes_and_images(dataset):
    base, new = base_and_new(dataset)
    assert base.class_names + new.class_names == dataset.class_names
    assert len(base.class_names) == math.ceil(len(dataset.class_names) / 2)
    assert base.template == new.template == dataset.template
    for split, images in dataset.splits.items():
        named = {image.path: dataset.class_names[image.label] for image in images}
        for half in (base, new):
            kept = half.splits.get(split, ())
            assert [image.path for image in kept] == [i.path for i in images if named[i.path] in half.class_names]
            assert all(half.class_names[image.label] == named[image.path] for image in kept)
        assert len(base.splits.get(split, ())) + len(new.splits.get(split, ())) == len(images)


def test_an_odd_number_of_classes_gives_base_one_more():
    base, new = base_and_new(imagined(ROOT, {"train": [0, 1, 2, 3, 4]}, 5))
    assert (base.name, base.class_names) == ("imagined (base)", ("class 0", "class 1", "class 2"))
    assert (new.name, new.class_names) == ("imagined (new)", ("class 3", "class 4"))
    assert [image.label for image in new.split("train")] == [0, 1]


def test_one_class_cannot_be_split():
    with pytest.raises(DatasetError, match="requires at least 2 classes"):
        base_and_new(imagined(ROOT, {"train": [0]}, 1))


def test_a_half_without_any_image_is_an_error():
    with pytest.raises(DatasetError, match=r"imagined \(new\): no images"):
        base_and_new(imagined(ROOT, {"test": [0, 0]}, 2))
