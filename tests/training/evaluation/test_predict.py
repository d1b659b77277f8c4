import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone
from tests.training.data.tiny_images import pixels_of
from tests.training.evaluation.tiny_sets import CLASS_NAMES, painted
from training.errors import DatasetError
from training.evaluation.predict import Predictor


@pytest.fixture
def dataset(tmp_path):
    return painted(tmp_path / "four")


@pytest.fixture(scope="module")
def stack():
    bundle = random_bundle("four", CLASS_NAMES, image_boost=(2, 3), text_boost=(2, 2))
    return PromptedClip(tiny_backbone()).load_stack(read_bundle(bundle))


class CrampedClip:
    """A model on a device that has room for two images only."""

    def __init__(self, model):
        self.backbone = model.backbone
        self.score = model.score
        self._model = model

    def encode_images(self, pixels, stacks):
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("no room")
        return self._model.encode_images(pixels, stacks)


def test_batched_and_single_predictions_are_equal(dataset, stack):
    answers = Predictor(tiny_backbone(), batch_rows=3).predict(stack, dataset)
    model = PromptedClip(tiny_backbone())
    for row, item in enumerate(dataset.split("test")):
        seen = model.encode_images(pixels_of([item.path], model.backbone.preprocess), [stack])
        (scores,) = model.score(seen, [stack])
        assert answers.named_N[row] == int(scores.argmax())
        assert answers.labels_N[row] == item.label
        np.testing.assert_allclose(answers.features_NE[row], seen.unit_BE[0].numpy(), atol=1e-6)


def test_progress_counts_checked_and_classified_images(dataset, stack):
    checked, answered = [], []
    Predictor(tiny_backbone(), batch_rows=3).predict(
        stack, dataset, on_check=lambda *counts: checked.append(counts), on_progress=answered.append
    )
    assert checked[-1] == (8, 8)
    assert answered == [3, 3, 2]


def test_damaged_images_are_skipped_and_reported(dataset, stack):
    damaged = dataset.split("test")[2].path
    damaged.write_bytes(damaged.read_bytes()[:60])
    answers = Predictor(tiny_backbone()).predict(stack, dataset)
    assert answers.unreadable == (damaged,)
    assert answers.labels_N.tolist() == [0, 0, 1, 2, 2, 3, 3]


def test_a_split_without_readable_images_is_an_error(dataset, stack):
    for item in dataset.split("test"):
        item.path.write_bytes(b"")
    with pytest.raises(DatasetError, match="8 of 8 images are unreadable"):
        Predictor(tiny_backbone()).predict(stack, dataset)


def test_a_batch_that_does_not_fit_the_device_is_split(dataset, stack):
    whole = Predictor(tiny_backbone()).predict(stack, dataset)
    cramped = Predictor(tiny_backbone())
    cramped.model = CrampedClip(cramped.model)
    parts = cramped.predict(stack, dataset)
    assert parts.named_N.tolist() == whole.named_N.tolist()
    np.testing.assert_allclose(parts.features_NE, whole.features_NE, atol=1e-6)
