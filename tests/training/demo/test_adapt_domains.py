"""The adapting table: recipes, images, computation, and the tables in the documentation."""

import json
from pathlib import Path

import pytest

from training.data.folder_per_class import read_class_folders
from training.demo.adapt_domains import MEASURES, domain_table, markdown_table, read_recipes
from training.demo.folders import write_labelled
from training.demo.world import CLASS_NAMES

ROOT = Path(__file__).parents[3]
FILED = ROOT / "docs" / "results" / "demo.json"


def rows(**boosted_h):
    made = []
    for domain, gain in boosted_h.items():
        for seed in (1, 2):
            for boosted in (False, True):
                h = 40.0 + seed + (gain if boosted else 0)
                made.append(
                    {"domain": domain, "method": "coop", "boosted": boosted, "seed": seed, "base": h, "new": h, "h": h}
                )
    return made


def test_the_table_has_means_over_domains_and_deviations_over_seeds():
    line = markdown_table(rows(fog=10.0, snow=2.0)).splitlines()[-1]
    cell = "41.5 ± 0.7 / 41.5 ± 0.7 / 41.5 ± 0.7"
    assert line == f"| coop | {cell} | {cell.replace('41.5', '47.5')} | +6.0 |"


def test_a_negative_gain_is_shown():
    assert markdown_table(rows(fog=-3.0)).endswith("| -3.0 |")


def test_each_domain_shows_h_alone_and_with_boosting():
    assert domain_table(rows(fog=10.0)).splitlines()[-1] == "| fog | 41.5 → 51.5 |"


def test_labelled_pictures_are_a_data_set_in_the_order_of_the_labels(tmp_path):
    write_labelled("thermal", tmp_path / "thermal", shots=1, n_test=300, test_seed=3)
    dataset = read_class_folders(tmp_path / "thermal")
    assert dataset.class_names == CLASS_NAMES
    assert [image.label for image in dataset.split("train")] == list(range(80))
    assert len(dataset.split("test")) == 300


def test_there_is_a_recipe_for_each_method_of_the_table():
    assert list(read_recipes()) == ["coop", "cocoop", "maple", "promptsrc"]


def test_the_file_has_every_method_with_and_without_boosting_over_three_seeds():
    filed = json.loads(FILED.read_text())["rows"]
    assert all(set(row) == {"domain", "method", "boosted", "seed", *MEASURES} for row in filed)
    for method in read_recipes():
        own = [row for row in filed if row["method"] == method]
        assert {row["seed"] for row in own if row["boosted"]} == {row["seed"] for row in own if not row["boosted"]}
        assert len({row["seed"] for row in own}) >= 3
        for row in own:
            assert row["h"] == pytest.approx(2 * row["base"] * row["new"] / (row["base"] + row["new"]), abs=0.02)


def test_the_pages_show_the_saved_numbers():
    filed = json.loads(FILED.read_text())["rows"]
    assert markdown_table(filed) in (ROOT / "README.md").read_text()
    assert domain_table(filed) in (ROOT / "docs" / "demo-world.md").read_text()
