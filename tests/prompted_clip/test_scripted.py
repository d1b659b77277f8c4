"""Frozen modules as TorchScript: the same outputs, without Python calls between the steps."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from prompted_clip.fused_tower import scripted
from tests.python_calls import python_calls


class Steps(nn.Module):
    """A number of steps, two operations each."""

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
    """Fails in TorchScript only."""

    def forward(self, x):
        if torch.jit.is_scripting():
            raise ValueError("cannot")
        return x + 1


def test_the_output_is_the_modules():
    module, x = Steps(5), torch.linspace(-2, 2, 7)
    assert torch.equal(scripted(module, x)(x), module(x))


def test_the_number_of_python_calls_does_not_depend_on_the_number_of_steps():
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


def test_a_module_that_torchscript_cannot_compile_runs_in_python_with_a_warning(caplog):
    module = Unknown()
    assert scripted(module, torch.zeros(1)) is module
    assert [record.message for record in caplog.records] == ["module.not_scripted"]


def test_a_module_that_torchscript_cannot_run_runs_in_python(caplog):
    module = Misread()
    assert scripted(module, torch.zeros(1)) is module
    assert [record.message for record in caplog.records] == ["module.not_scripted"]


def test_without_torchscript_modules_run_in_python(monkeypatch):
    monkeypatch.delattr(torch.jit, "script")
    module = Steps(2)
    assert scripted(module, torch.zeros(1)) is module


@pytest.mark.filterwarnings("error")
def test_torchs_deprecation_warning_is_silenced():
    scripted(Steps(1), torch.zeros(1))
