"""Forms of linear layers in turn: every way runs what it says it runs."""

import torch

from benchmarks import linear_forms
from prompted_clip.fused_vision import FusedImageTower
from tests.tiny import tiny_backbone


def test_every_way_embeds_the_same_images_and_both_forms_see_the_prompts(monkeypatch):
    made = []
    init = FusedImageTower.__init__

    def noting(self, backbone, linears):
        made.append(linears.is_packed)
        init(self, backbone, linears)

    monkeypatch.setattr(FusedImageTower, "__init__", noting)
    found = {name: work() for name, work in linear_forms.ways(tiny_backbone()).items()}
    assert made == [True, False]
    assert {len(embedded) for embedded in found.values()} == {linear_forms.N_ROWS}
    torch.testing.assert_close(found["packed"], found["plain steps"], rtol=0, atol=1e-5)
    assert not torch.allclose(found["packed"], found[linear_forms.OPEN_CLIP], atol=1e-3), "which has no prompts"


def test_the_table_has_a_row_for_every_way():
    table = linear_forms.markdown_table({"packed": 1.5, "plain steps": 2.0})
    assert table.splitlines()[2:] == ["| packed | 1.50 |", "| plain steps | 2.00 |"]
