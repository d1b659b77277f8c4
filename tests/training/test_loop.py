"""The training loop: schedule, checkpoints and errors."""

import math

import pytest
import torch
from torch import nn

from training.errors import CheckpointError, DivergedError, OutOfMemoryError
from training.loop import CheckpointConfig, ParameterGroup, learning_rate, train
from training.recipe import Recipe
from training.selection import Selection


class Line(nn.Module):
    """Fits y = w x by least squares over ten points, and records the calls of the loop."""

    n_images = 10
    averages_over_images = True

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.seen, self.ended, self.prefetched = [], [], []

    def parameter_groups(self):
        return [ParameterGroup([self.w])]

    def order(self, epoch):
        return torch.randperm(10, generator=torch.Generator().manual_seed(epoch))

    def prefetch(self, indices, epoch):
        self.prefetched.append((epoch, indices.tolist()))

    def loss(self, indices, epoch):
        self.seen.append((epoch, indices.tolist()))
        x = indices.float()
        return (self.w * x - 3 * x).square().mean()

    def end_epoch(self, epoch):
        self.ended.append(epoch)


class FullDevice(Line):
    def loss(self, indices, epoch):
        raise torch.OutOfMemoryError


def recipe(**changes):
    values = {"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "warmup_epochs": 0, "weight_decay": 0.0}
    return Recipe(**(values | changes))


def test_every_epoch_sees_every_image_once_and_calls_end_epoch():
    line = Line()
    run = train(line, recipe())
    assert run.step == 9
    assert line.ended == [0, 1, 2]
    for epoch in range(3):
        assert sorted(index for at, indices in line.seen if at == epoch for index in indices) == list(range(10))
    assert run.losses[-1] < run.losses[0] / 10


def test_the_last_incomplete_batch_is_dropped_if_the_recipe_says_so():
    line = Line()
    run = train(line, recipe(drop_last=True))
    assert run.step == 6
    assert line.ended == [0, 1, 2]
    assert [len(indices) for _, indices in line.seen] == [4] * 6
    assert [indices for _, indices in line.prefetched] == [indices for _, indices in line.seen[1::2]]
    for epoch, indices in line.seen[::2]:
        assert indices == line.order(epoch)[:4].tolist()


@pytest.mark.parametrize(("batch_size", "n_steps"), [(10, 1), (11, 1), (5, 2), (3, 3), (6, 1)])
def test_a_batch_larger_than_the_data_is_not_dropped(batch_size, n_steps):
    assert train(Line(), recipe(epochs=1, drop_last=True, batch_size=batch_size)).step == n_steps


def test_the_next_step_is_prefetched_within_an_epoch():
    line = Line()
    train(line, recipe())
    assert [call for call in line.prefetched if call[1]] == [seen for step, seen in enumerate(line.seen) if step % 3]


def test_the_rate_is_constant_during_warm_up_then_follows_a_cosine():
    chosen = recipe(epochs=4, warmup_epochs=1, learning_rate=1.0, warmup_learning_rate=0.25)
    expected = [0.25, 1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5]
    assert [learning_rate(chosen, epoch) for epoch in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize("stop_at", [1, 4, 5, 8])
def test_a_run_interrupted_at_any_step_resumes_to_the_same_bits(tmp_path, stop_at):
    whole, checkpoint = Line(), CheckpointConfig(tmp_path / "state", {"recipe": "a"}, every_n_steps=1)
    losses = train(whole, recipe()).losses

    class StoppedError(Exception):
        pass

    def stop(run):
        if run.step == stop_at + 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(Line(), recipe(), checkpoint=checkpoint, on_step=stop)
    again = Line()
    assert train(again, recipe(), checkpoint=checkpoint).losses == losses
    assert torch.equal(again.w, whole.w)


@pytest.mark.parametrize("stop_at", [1, 4, 8])
def test_a_resumed_run_selects_the_same_state_and_reports_its_step(tmp_path, stop_at):
    def selection(line):
        return Selection(lambda: {"accuracy": 1 / (1 + abs(line.w.item() - 2))}, {"accuracy": 0.1}, 10)

    class StoppedError(Exception):
        pass

    def stop(run):
        if run.step == stop_at + 1:
            raise StoppedError

    whole, stopped, again = Line(), Line(), Line()
    expected, found = selection(whole), selection(again)
    train(whole, recipe(), selection=expected)
    checkpoint = CheckpointConfig(tmp_path / "state", {"recipe": "a"}, every_n_steps=1)
    with pytest.raises(StoppedError):
        train(stopped, recipe(), checkpoint=checkpoint, selection=selection(stopped), on_step=stop)
    resumed_after = []
    train(again, recipe(), checkpoint=checkpoint, selection=found, on_resume=lambda run: resumed_after.append(run.step))
    assert resumed_after == [stop_at]
    assert found.metrics() == expected.metrics()
    for chosen, line in ((expected, whole), (found, again)):
        chosen.finish(line, recipe(), 9, tmp_path / "state", keep_worse=False)
    assert torch.equal(again.w, whole.w)


def test_a_finished_run_is_checkpointed_and_takes_no_further_step(tmp_path):
    checkpoint = CheckpointConfig(tmp_path / "state", {"recipe": "a"}, every_n_steps=100)
    losses = train(Line(), recipe(), checkpoint=checkpoint).losses
    steps = []
    again = train(Line(), recipe(), checkpoint=checkpoint, on_step=lambda run: steps.append(run.step))
    assert (steps, again.losses) == ([], losses)


def test_a_checkpoint_of_another_run_is_rejected(tmp_path):
    train(Line(), recipe(), checkpoint=CheckpointConfig(tmp_path / "state", {"recipe": "a"}, every_n_steps=1))
    with pytest.raises(CheckpointError, match="recipe differ"):
        train(Line(), recipe(), checkpoint=CheckpointConfig(tmp_path / "state", {"recipe": "b"}))


def test_a_damaged_checkpoint_is_rejected(tmp_path):
    (tmp_path / "state").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="Cannot read the checkpoint"):
        train(Line(), recipe(), checkpoint=CheckpointConfig(tmp_path / "state", {}))


def test_a_non_finite_loss_names_the_step_and_the_setting_to_lower():
    line = Line()
    with pytest.raises(DivergedError, match=r"at step \d+ .*Lower learning_rate"):
        train(line, recipe(learning_rate=1e30, epochs=20))


def test_out_of_memory_names_the_setting_to_lower():
    with pytest.raises(OutOfMemoryError, match="batches of 4: lower batch_size"):
        train(FullDevice(), recipe())
