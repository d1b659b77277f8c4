"""Frozen modules as TorchScript: the same numbers, and no step of the interpreter in between."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from prompted_clip.fused_tower import scripted
from tests.python_calls import python_calls


class Steps(nn.Module):
    """So many steps, each of which does something."""

    def __init__(self, n_steps):
        super().__init__()
        self.steps = nn.ModuleList([nn.Tanh() for _ in range(n_steps)])

    def forward(self, x):
        for step in self.steps:
            x = step(x) + 0.1
        return x


class Unknown(nn.Module):
    """Python that TorchScript does not know."""

    def forward(self, x, **_):
        return x + len({*()})


class Misread(nn.Module):
    """Something else in TorchScript than in Python."""

    def forward(self, x):
        if torch.jit.is_scripting():
            raise ValueError("cannot")
        return x + 1


def test_the_numbers_are_the_modules():
    module, x = Steps(5), torch.linspace(-2, 2, 7)
    assert torch.equal(scripted(module, x)(x), module(x))


def test_the_interpreter_does_no_more_for_many_steps_than_for_one():
    x = torch.zeros(3)
    one, many = (scripted(Steps(n_steps), x) for n_steps in (1, 50))
    assert python_calls(lambda: one(x)) == python_calls(lambda: many(x)) < 50
    assert python_calls(lambda: Steps(50)(x)) > 50, "in Python it does"


def test_several_threads_may_run_it_at_once():
    module = Steps(20)
    inputs = [torch.full((64,), float(value)) for value in range(40)]
    run = scripted(module, inputs[0])
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, inputs))
    assert all(map(torch.equal, found, map(module, inputs)))


def test_it_leaves_other_scripts_their_optimizer():
    scripted(Steps(1), torch.zeros(1))(torch.zeros(1))
    assert torch._C._get_graph_executor_optimize()


def test_what_torchscript_does_not_take_runs_as_it_is_and_a_warning_says_so(caplog):
    module = Unknown()
    assert scripted(module, torch.zeros(1)) is module
    assert [record.message for record in caplog.records] == ["module.not_scripted"]


def test_what_torchscript_takes_and_then_cannot_run_runs_as_it_is(caplog):
    module = Misread()
    assert scripted(module, torch.zeros(1)) is module
    assert [record.message for record in caplog.records] == ["module.not_scripted"]


def test_a_torch_without_torchscript_runs_modules_as_they_are(monkeypatch):
    monkeypatch.delattr(torch.jit, "script")
    module = Steps(2)
    assert scripted(module, torch.zeros(1)) is module


@pytest.mark.filterwarnings("error")
def test_nobody_is_told_what_torch_says_about_it():
    scripted(Steps(1), torch.zeros(1))
