"""Estimated durations: from a rate, and from timed steps."""

import dataclasses

import pytest

from tests.tiny import tiny_backbone
from tests.training.evaluation.tiny_sets import painted
from training.adapting.coop import CoOpRecipe
from training.adapting.promptsrc import PromptSRCRecipe
from training.errors import RecipeError
from training.evaluation import estimate
from training.evaluation.estimate import Timer, format_duration
from training.label_free.methods import LABEL_FREE
from training.recipe import BoostRecipe, FewShotRecipe

BOOST = BoostRecipe(epochs=3, batch_size=5, image_tokens=2, text_tokens=2, text_init="")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("four"), train=3, test=2)  # 12 train and 8 test images


def timer(images_per_second=None):
    return Timer(tiny_backbone(), tiny_backbone("tiny-teacher", seed=1), images_per_second)


def test_a_rate_applies_to_every_image_of_every_epoch(dataset):
    by_rate = timer(4.0)
    assert by_rate.boosting(dataset, BOOST).n_images == 36
    assert by_rate.boosting(dataset, BOOST).seconds == 9.0
    assert by_rate.adapting(dataset, "coop", CoOpRecipe(epochs=2)).seconds == 6.0
    assert by_rate.testing(dataset, 8).seconds == 2.0
    assert by_rate.source == "a rate of 4 images per second, as given"


def test_dropped_last_batches_are_not_counted(dataset):
    dropped = BOOST.model_copy(update={"drop_last": True})
    assert timer(1.0).boosting(dataset, dropped).n_images == 3 * 10


def test_a_timing_is_proportional_to_the_number_of_steps(dataset, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(ticks)))  # every step takes one second
    timed = timer()
    assert timed.boosting(dataset, BOOST).seconds == 9  # 3 epochs of 3 steps
    recipe = PromptSRCRecipe(epochs=4, batch_size=6)
    assert timed.adapting(dataset, "promptsrc", recipe).seconds == 8
    assert timed.adapting(dataset, "promptsrc", recipe, BOOST).seconds == 8
    assert timed.testing(dataset, 80).seconds == 10  # one second for the eight test images
    assert "timed steps" in timed.source


def test_a_closed_form_head_is_one_pass_over_its_images(dataset):
    assert timer(4.0).adapting(dataset, "gda", FewShotRecipe()).seconds == 3.0


def test_label_free_methods_cannot_be_estimated(dataset):
    name, kind = next(iter((name, entry.recipe) for name, entry in LABEL_FREE.items()))
    with pytest.raises(RecipeError, match=f"label-free method {name} cannot be estimated"):
        timer(4.0).adapting(dataset, name, kind())


def test_a_data_set_without_test_images_is_timed_on_its_train_images(dataset):
    only_train = dataclasses.replace(dataset, splits={"train": dataset.split("train")})
    assert timer().testing(only_train, 12).seconds > 0


@pytest.mark.parametrize(("seconds", "words"), [(12, "12 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_in_seconds_minutes_or_hours(seconds, words):
    assert format_duration(seconds) == words
