"""The ways of decoding that are compared do the same work, and the page shows what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.decode import DecodeOptions, measure, rows
from benchmarks.decode_differences import apart, both, demo_answers
from benchmarks.decode_ways import CLIP, REFERENCE, as_jpeg, mosaic, ways
from benchmarks.report import Table
from prompted_clip import PromptedClip, load_backbone
from service.demo.files import ASSETS, BACKBONE, read_bundles

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision, of its decoder
ROOT = Path(__file__).parents[2]
SMALL = DecodeOptions(side=32, budget_s=0, sizes=((32, 32), (150, 110)))


def test_the_files_are_the_same_every_time():
    assert as_jpeg(mosaic((150, 110))) == as_jpeg(mosaic((150, 110)))
    assert mosaic((151, 113)).size == (151, 113)


@pytest.mark.parametrize("size", [(32, 32), (150, 110), (110, 150), (400, 300)])
def test_every_way_shows_the_same_picture(size):
    data = as_jpeg(mosaic(size))
    pixels = {name: way(data).astype(int) for name, way in ways(32, CLIP).items()}
    assert {found.shape for found in pixels.values()} == {(3, 32, 32)}
    for name in ("service, exact", "simplejpeg, Pillow resize"):
        np.testing.assert_array_equal(pixels[name], pixels[REFERENCE])
    for name, found in pixels.items():
        assert np.abs(found - pixels[REFERENCE]).mean() < 12, name


def test_rows_name_every_way_for_every_size_and_leave_the_threads_as_they_were():
    before = torch.get_num_threads()
    found = rows(SMALL, Console(quiet=True))
    assert torch.get_num_threads() == before
    assert [(row.size, row.way) for row in found] == [(size, name) for size in SMALL.sizes for name in ways(32, CLIP)]
    for row in found:
        assert row.per_s > 0
        assert row.gain.n_rounds == len(row.taken_s)
        assert row.way != REFERENCE or (row.gain.value, row.max_difference) == (1, 0)


def test_the_report_holds_a_table_for_every_size_and_the_ratios_of_the_services_ways():
    report = measure(SMALL, Console(quiet=True))
    assert [title.split(" pixels")[0] for title in report.tables] == ["32 x 32", "150 x 110"]
    names = {one.name for one in report.numbers}
    assert names == {
        f"{way}_{size}_vs_open_clip_steps" for way in ("exact", "fast") for size in ("32x32", "150x110")
    }  # fmt: skip


def test_pixels_that_are_the_same_are_not_apart():
    pixels = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8)
    assert apart(pixels, pixels) == ("0.000", 0, "0.00%")
    other = pixels.clone()
    other[0, 0, 0, 0] += 96
    assert apart(pixels, other) == ("0.500", 96, "0.52%")


def test_a_demo_domain_sees_the_same_where_nothing_is_resized_and_nearly_the_same_where_it_is():
    model = PromptedClip(load_backbone(BACKBONE))
    bundle = read_bundles(ASSETS / "bundles")[0]
    same = demo_answers(model, bundle, (64, 64))
    assert torch.equal(same.exact, same.fast)
    assert torch.equal(same.exact_logits, same.fast_logits)
    near = demo_answers(model, bundle, (320, 240))
    assert not torch.equal(near.exact, near.fast)
    assert (near.exact_logits - near.fast_logits).abs().mean() < 0.3


def test_both_ways_read_the_same_files():
    exact, fast = both([as_jpeg(mosaic(size)) for size in ((32, 32), (48, 40))], 32, CLIP)
    assert exact.shape == fast.shape == (2, 3, 32, 32)
    assert (exact.int() - fast.int()).abs().max() <= 8


@pytest.mark.parametrize("name", ["bench-decode", "bench-decode-differences"])
def test_the_page_shows_the_numbers_on_file(name):
    page = (ROOT / "docs" / "images.md").read_text()
    filed = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    assert filed["tables"]
    for found in filed["tables"].values():
        assert Table(list(found[0]), [list(row.values()) for row in found]).markdown() in page
