"""The label-free table: its runs and its lines."""

import json
from pathlib import Path

import pytest

from training.demo import label_free_domains
from training.demo.label_free_domains import ONE_SEED, SEEDS, domain_table, learn_domain, markdown_table, variants
from training.label_free.methods import LABEL_FREE

ROOT = Path(__file__).parents[3]
FILED = json.loads((ROOT / "docs" / "results" / "demo-label-free.json").read_text())["rows"]


def rows(method, labels="own", seeds=(1, 2), gain=10.0):
    return [
        {"domain": domain, "method": method, "labels": labels, "boosted": boosted, "seed": seed}
        | dict.fromkeys(("base", "new", "h", "all"), 40.0 + (seed or 0) + (gain if boosted else 0))
        for domain in ("fog", "snow")
        for seed in seeds
        for boosted in (False, True)
    ]


def test_the_table_has_a_line_for_each_method_and_source_of_labels():
    _, _, *lines, empty, domains = markdown_table([*rows("upl"), *rows("upl", "teacher", (1,), gain=-3.0)]).splitlines()
    assert (empty, domains) == ("", "Domains: fog, snow.")
    cell = "41.5 ± 0.7 / 41.5 ± 0.7 / 41.5 ± 0.7"
    assert lines == [
        f"| `upl` | {cell} | {cell.replace('41.5', '51.5')} | +10.0 |",
        "| `upl`, teacher's labels | 41.0 / 41.0 / 41.0 | 38.0 / 38.0 / 38.0 | -3.0 |",
    ]


def test_the_table_of_domains_has_the_best_method_alone_and_boosting():
    found = [*rows("zero-shot", seeds=(None,), gain=20.0), *rows("upl"), *rows("grip", seeds=(5, 6))]
    found += [*rows("upl", "teacher", (9,)), *rows("lp-clip", "teacher", (3,))]
    for row in found:
        if row["domain"] == "snow":
            row["h"] += 2 if row["method"] == "grip" else 1
    _, _, *lines = domain_table(found).splitlines()
    assert lines == [
        "| fog | 40.0 | 45.5 (`grip`) | 49.0 (`upl`) | 60.0 |",
        "| snow | 41.0 | 47.5 (`grip`) | 50.0 (`upl`) | 61.0 |",
        "| gain |  | +6.0 ± 0.7 | +9.0 ± 0.0 | +20.0 ± 0.0 |",
    ]


def test_every_label_free_method_has_a_recipe_for_the_demo_student():
    found = list(variants())
    assert {variant.method for variant in found} == set(LABEL_FREE)
    for name in dict.fromkeys(variant.name for variant in found):
        own = [variant for variant in found if variant.name == name and not variant.has_teacher]
        with_teacher = [variant for variant in found if variant.name == name and variant.has_teacher]
        entry = LABEL_FREE[own[0].method]
        seeds = list(SEEDS[:1] if name in ONE_SEED else SEEDS) if "seed" in entry.recipe.model_fields else [None]
        assert [variant.seed for variant in own] == seeds
        assert len(with_teacher) == int(entry.takes_teacher and name == own[0].method)
    assert len({(variant.method, variant.has_teacher, variant.recipe.model_dump_json()) for variant in found}) == len(
        found
    )


def test_a_run_can_be_limited_to_some_recipes():
    assert {variant.name for variant in variants(["grip-visual", "upl"])} == {"grip-visual", "upl"}


def test_grip_runs_with_each_kind_of_prompts():
    kinds = {variant.name: variant.recipe.prompts for variant in variants() if variant.method == "grip"}
    assert kinds == {"grip": "textual", "grip-visual": "visual", "grip-multimodal": "multimodal"}


@pytest.mark.slow
def test_finished_runs_are_read_and_nothing_is_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(label_free_domains, "N_UNLABELLED", 100)
    monkeypatch.setattr(label_free_domains, "N_TEST", 100)
    bundles = ROOT / "service" / "demo" / "bundles"
    first = learn_domain("thermal", ["transclip"], bundles, tmp_path)
    assert [(row["method"], row["boosted"]) for row in first] == [
        ("zero-shot", False),
        ("transclip", False),
        ("zero-shot", True),
        ("transclip", True),
    ]
    for model in ("encode", "teacher_scores"):
        monkeypatch.setattr(label_free_domains, model, lambda *_: pytest.fail("a model ran"))
    assert learn_domain("thermal", ["transclip"], bundles, tmp_path) == first


def test_the_page_shows_the_saved_numbers():
    page = (ROOT / "docs" / "adapting.md").read_text()
    assert markdown_table(FILED) in page
    assert domain_table(FILED) in page


def test_every_saved_row_has_a_pair_with_and_without_boosting():
    plain, boosted = (
        {(row["domain"], row["method"], row["labels"], row["seed"]) for row in FILED if row["boosted"] is is_boosted}
        for is_boosted in (False, True)
    )
    assert plain == boosted
    for row in FILED:
        assert row["h"] == pytest.approx(2 * row["base"] * row["new"] / (row["base"] + row["new"]), abs=0.02)
