import dataclasses

import numpy as np
import pytest

from prompt_store.bundle import read_bundle
from prompted_clip.errors import StackMismatchError
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone
from tests.training.evaluation.tiny_sets import CLASS_NAMES, painted
from training.data.dataset import LabelledImage
from training.evaluation.one_bundle import measure_bundle, to_json, to_markdown
from training.evaluation.predict import Predictor


@pytest.fixture
def dataset(tmp_path):
    return painted(tmp_path / "four")


@pytest.fixture
def predictor():
    return Predictor(tiny_backbone())


def bundle_of(class_names=CLASS_NAMES, **shapes):
    return read_bundle(random_bundle("four", class_names, **shapes))


def test_the_confusion_matrix_counts_every_prediction(dataset, predictor):
    bundle = bundle_of()
    result = measure_bundle(predictor, bundle, dataset)
    answers = predictor.predict(predictor.model.load_stack(bundle), dataset)
    expected = np.zeros((4, 4), dtype=int)
    for label, named in zip(answers.labels_N, answers.named_N, strict=True):
        expected[label, named] += 1
    assert (result.confusion_KK == expected).all()
    assert result.accuracy == pytest.approx(100 * np.trace(expected) / 8)
    assert [each.accuracy for each in result.classes] == [50.0 * expected[k, k] for k in range(4)]
    assert (result.n_images, result.labels) == (8, "own")


def test_the_order_of_the_bundles_classes_does_not_matter(dataset, predictor):
    bundle = bundle_of()
    turned = tuple(reversed(CLASS_NAMES))
    images = {"test": tuple(LabelledImage(item.path, 3 - item.label) for item in dataset.split("test"))}
    other = dataclasses.replace(dataset, class_names=turned, splits=images)
    straight, reverse = measure_bundle(predictor, bundle, dataset), measure_bundle(predictor, bundle, other)
    assert (reverse.confusion_KK == straight.confusion_KK[::-1, ::-1]).all()
    assert reverse.labels == "own"


def test_other_classes_use_the_bundles_prompts(dataset, predictor):
    result = measure_bundle(predictor, bundle_of(("cat", "dog")), dataset)
    assert (result.labels, len(result.classes)) == ("open", 4)
    assert "differ from its own" in to_markdown(result)


def test_without_a_bundle_the_plain_backbone_is_measured_with_the_hand_written_prompt(dataset, predictor):
    result = measure_bundle(predictor, None, dataset)
    stack = predictor.model.plain_stack("plain", CLASS_NAMES, [dataset.template])
    answers = predictor.predict(stack, dataset)
    assert result.accuracy == pytest.approx(100 * np.mean(answers.labels_N == answers.named_N))
    assert (result.labels, result.domain, result.digest, result.backbone) == ("plain", None, None, "tiny (random:0)")
    assert result.title == "tiny (random:0) on four, test"
    assert "tiny (random:0) without prompts" in to_markdown(result)


def test_class_specific_contexts_reject_other_classes(dataset, predictor):
    with pytest.raises(StackMismatchError, match="class-specific"):
        measure_bundle(predictor, bundle_of(("cat", "dog"), text_adapt=(2, 1, 3)), dataset)


def test_classes_without_images_are_listed_last_and_not_counted(dataset, predictor):
    images = {"test": tuple(item for item in dataset.split("test") if item.label != 1)}
    result = measure_bundle(predictor, bundle_of(), dataclasses.replace(dataset, splits=images))
    rates = [each.accuracy for each in result.classes]
    assert rates[1] is None
    assert result.mean_class_accuracy == pytest.approx(np.mean([rate for rate in rates if rate is not None]))
    assert to_markdown(result).splitlines()[-1].startswith("| dotted | 0 | - |")


def test_the_most_frequent_wrong_prediction_is_reported(dataset, predictor):
    result = measure_bundle(predictor, bundle_of(), dataset)
    for label, each in enumerate(result.classes):
        wrong = result.confusion_KK[label].copy()
        wrong[label] = 0
        assert each.mistaken_for == (CLASS_NAMES[wrong.argmax()] if wrong.sum() else None)
    assert to_json(result)["confusion_KK"] == result.confusion_KK.tolist()
