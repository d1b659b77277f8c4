"""Selection by held-out scores: the kept state, errors and reports."""

import pytest
from torch import nn, tensor

from training.errors import NoGainError
from training.recipe import Recipe
from training.selection import N_MEASUREMENTS, Selection

RECIPE = Recipe(learning_rate=0.02, epochs=8)


class Counter(nn.Module):
    """Its state is the number of completed steps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", tensor(0))


def run(scores, before=0.5, n_steps=None):
    """A run of one measurement per step with these scores; returns the selection, the learner and the printed lines."""
    lines, left, learner = [], iter(scores), Counter()
    selection = Selection(lambda: {"agreement": next(left)}, {"agreement": before}, 40, lines.append)
    for step in range(1, len(scores) + 1):
        learner.steps.fill_(step)
        selection.after_step(learner, step, n_steps or len(scores))
    return selection, learner, lines


@pytest.mark.parametrize(
    ("scores", "best"),
    [((0.6, 0.9, 0.7), 2), ((0.6, 0.7, 0.8), 3), ((0.9, 0.7, 0.8), 1), ((0.6, 0.8, 0.8), 3)],
)
def test_the_best_measured_state_is_loaded_and_of_equal_scores_the_later(tmp_path, scores, best):
    selection, learner, _ = run(scores)
    selection.finish(learner, RECIPE, 3, tmp_path / "state", keep_worse=False)
    assert learner.steps == selection.best_step == best


@pytest.mark.parametrize(("n_steps", "expected"), [(1, 1), (5, 5), (8, 8), (80, 8), (83, 8), (1000, 8)])
def test_a_run_is_measured_a_few_times_and_after_its_last_step(n_steps, expected):
    steps = []
    selection = Selection(lambda: {"accuracy": 1.0}, {"accuracy": 0.0}, 4, steps.append)
    for step in range(1, n_steps + 1):
        selection.after_step(Counter(), step, n_steps)
    assert len(steps) == 1 + expected <= 1 + N_MEASUREMENTS
    assert steps[-1].startswith(f"Held-out images, step {n_steps} of {n_steps}")


@pytest.mark.parametrize(
    ("scores", "advice"),
    [((0.45, 0.3, 0.1), r"fell after step 1: .*learning_rate=0\.005, now 0\.02"), ((0.1, 0.3, 0.4), "train longer")],
)
def test_a_model_made_worse_is_an_error_with_advice(tmp_path, scores, advice):
    (tmp_path / "state").touch()
    selection, learner, _ = run(scores)
    with pytest.raises(NoGainError, match=advice) as caught:
        selection.finish(learner, RECIPE, 3, tmp_path / "state", keep_worse=False)
    assert "agreement on 40 held-out images was 50.0% before training" in str(caught.value)
    assert "--keep-worse" in str(caught.value)
    assert not (tmp_path / "state").exists()


def test_a_model_made_worse_is_kept_on_request_and_reported(tmp_path):
    selection, learner, lines = run((0.4, 0.3))
    selection.finish(learner, RECIPE, 2, tmp_path / "state", keep_worse=True)
    assert learner.steps == 1
    assert "made the model worse" in lines[-1]


def test_equal_to_before_is_not_worse(tmp_path):
    selection, learner, _ = run((0.4, 0.5))
    selection.finish(learner, RECIPE, 2, tmp_path / "state", keep_worse=False)
    assert learner.steps == 2


def test_the_metrics_name_the_moment_and_the_images_of_each_score():
    selection, _, lines = run((0.6, 0.9, 0.7))
    assert selection.metrics() == {
        "n_held_out": 40,
        "best_step": 2,
        "held_out_agreement_before": 0.5,
        "held_out_agreement_best": 0.9,
        "held_out_agreement_after": 0.7,
    }
    assert lines[0] == "Held-out images, before training: agreement 50.0%"
    assert lines[2] == "Held-out images, step 2 of 3: agreement 90.0%"


@pytest.mark.parametrize(("best", "is_small"), [(0.5, True), (0.55, True), (0.6, False)])
def test_a_gain_within_the_standard_error_is_reported(tmp_path, best, is_small):
    selection, learner, lines = run((best,))
    selection.finish(learner, RECIPE, 1, tmp_path / "state", keep_worse=False)
    assert ("within the standard error of 40 held-out images, 7.9%" in lines[-1]) == is_small
