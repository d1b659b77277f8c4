"""Slices and parts in turn: every way runs what it says it runs."""

import pytest
import torch

from benchmarks import slices
from prompted_clip.fused_linear import Linears
from prompted_clip.fused_vision import FusedImageTower
from tests.tiny import tiny_backbone


def test_every_way_embeds_the_same_number_of_images_in_parts_of_its_size(monkeypatch):
    seen = []
    monkeypatch.setattr(FusedImageTower, "__call__", lambda _, pixels, grid: seen.append((len(pixels), grid.n_tokens)))
    turns = slices.ways(tiny_backbone(), lambda work: work())
    assert set(turns) == {(width, n_rows) for width in slices.WIDTHS for n_rows in slices.PARTS}
    for (_, n_rows), turn in turns.items():
        seen.clear()
        turn()
        assert seen == [(n_rows, slices.N_PROMPTS)] * (slices.IMAGES_PER_TURN // n_rows)


def test_widths_are_those_of_the_towers_slices(monkeypatch):
    cut, packed = [], Linears(torch.bfloat16, is_packed=True)
    monkeypatch.setattr(slices, "FusedImageTower", lambda _: cut.append(len(packed.slices(3072))))
    slices.ways(tiny_backbone(), lambda work: work())
    assert cut == [1, 2, 3, 6]


def test_the_table_has_a_row_for_every_part_size():
    table = slices.markdown_table({(width, n): width / 1e6 + n for width in slices.WIDTHS for n in slices.PARTS})
    head, _, *rows = table.splitlines()
    assert head == "| images in a part | whole | slices of 1,536 | slices of 1,024 | slices of 512 |"
    assert len(rows) == len(slices.PARTS)
    assert pytest.approx(1001.0) == float(rows[0].split("|")[2])
