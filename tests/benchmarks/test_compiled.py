"""Served steps in turn: every way runs what it says it runs."""

import shutil

import pytest
import torch

from benchmarks import compiled
from tests.tiny import tiny_backbone

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")


@needs_compiler
def test_every_way_embeds_the_same_images():
    backbone = tiny_backbone()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {name: make() for name, make in compiled.ways(backbone).items()}
    found = {name: way() for name, way in made.items()}
    expected = found.pop(compiled.SERVED)
    assert len(expected) == compiled.N_ROWS
    for name, embedded in found.items():
        torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-5, msg=name)


def test_only_what_has_options_is_compiled(monkeypatch):
    options = []
    monkeypatch.setattr(torch, "compile", lambda module, **given: options.append(given["options"]) or module)
    for make in compiled.ways(tiny_backbone()).values():
        make()
    assert options == [compiled.FROZEN, compiled.FROZEN | {"max_autotune": True}]


def test_the_table_has_a_row_for_every_way_with_its_share():
    table = compiled.markdown_table({compiled.SERVED: 20.0, "compiled": 18.0}, {compiled.SERVED: 1.0, "compiled": 9.5})
    assert table.splitlines()[2:] == ["| as served | 20.00 | 1.00 | 1.0 |", "| compiled | 18.00 | 0.90 | 9.5 |"]
