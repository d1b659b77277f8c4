"""Variants of boosting and limits of a domain: the runs, their cache, and the tables in the documentation."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.demo import boost_limits, boost_variants
from training.demo.__main__ import app
from training.demo.boost_limits import LIMITS, Limit, LimitRuns
from training.demo.boost_variants import BASELINE, EPOCHS, N_IMAGES, SEEDS, VariantRuns, plan, recipe_of, variants
from training.demo.distiller import Variant
from training.demo.variant_tables import limits_table, variants_table
from training.loop import steps_per_epoch

ROOT = Path(__file__).parents[3]
FILED = json.loads((ROOT / "docs" / "results" / "demo-boost-variants.json").read_text())
PAGE = (ROOT / "docs" / "demo-world.md").read_text()


def row(variant, accuracy, seed, domain="fog"):
    return {"variant": variant, "accuracy": accuracy, "seed": seed, "domain": domain}


def test_all_variants_cost_the_same(tmp_path):
    runs = VariantRuns("night", tmp_path / "rows", tmp_path / "images", n_images=2, n_test=1)
    for variant in variants():
        recipe = recipe_of(variant, 1, runs.student)
        n_steps = recipe.epochs * steps_per_epoch(recipe, N_IMAGES)
        assert n_steps * recipe.batch_size == EPOCHS * N_IMAGES, variant.label


def test_a_finished_run_is_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(boost_variants, "EPOCHS", 1)
    variant = Variant("short", {"image_tokens": 1, "batch_size": 4})
    runs = VariantRuns("night", tmp_path / "rows", tmp_path / "images", n_images=4, n_test=10)
    first = runs.row(variant, 1)
    assert first["steps"] == 1
    monkeypatch.setattr(boost_variants, "distil", None)
    assert runs.row(variant, 1) == first
    with pytest.raises(TypeError):
        runs.row(variant, 2)


def test_all_variants_are_screened_and_some_are_repeated():
    runs = plan(("fog", "snow"), (1, 2))
    assert [(domain, seed) for _, domain, seed in runs[: len(variants())]] == [("fog", 1)] * len(variants())
    repeated = [variant.label for variant in variants() if variant.is_repeated]
    assert repeated[0] == BASELINE
    for label in repeated:
        found = sorted((domain, seed) for variant, domain, seed in runs if variant.label == label)
        assert found == [("fog", 1), ("fog", 2), ("snow", 1), ("snow", 2)]
    assert len(runs) == len(variants()) + 3 * len(repeated)


def test_seeds_have_different_images(tmp_path):
    runs = VariantRuns("night", tmp_path / "rows", tmp_path / "images", n_images=3, n_test=1)
    files = [set(runs._data(seed).files) for seed in SEEDS]
    assert all(len(own) == 3 for own in files)
    assert len(set.union(*files)) == 9


def test_a_limit_is_measured_and_reused(tmp_path, monkeypatch):
    runs = LimitRuns("night", ROOT / "service" / "demo" / "bundles" / "night.safetensors", tmp_path, n_test=40)
    limit = Limit("labels", n_images=4, targets="labels", values={"epochs": 1, "image_tokens": 1})
    first = runs.row(limit)
    assert (first["n_images"], first["steps"], first["run"]) == (4, 1, "labels")
    monkeypatch.setattr(boost_limits, "distil", None)
    assert runs.row(limit) == first
    assert [found["run"] for found in runs.references()] == ["student", "teacher", "boosting bundle of the demo"]


def test_variants_are_compared_in_the_first_domain_and_repeated_ones_in_all():
    references = [{"domain": name, "student": 10.0, "teacher": 60.0} for name in ("fog", "snow")]
    rows = [row("a", 40.0, 1), row("b", 43.0, 1), row("c", 39.0, 1), row("a", 50.0, 2), row("b", 51.0, 2)]
    rows += [row("a", 20.0, 1, "snow"), row("b", 21.0, 1, "snow")]
    assert variants_table(references, rows).splitlines() == [
        "| recipe | fog, seed 1 | difference |",
        "|---|---|---|",
        "| a | 40.0 |  |",
        "| b | 43.0 | +3.0 |",
        "| c | 39.0 | -1.0 |",
        "",
        "| domain | student | teacher | a | b | difference | seeds |",
        "|---|---|---|---|---|---|---|",
        "| fog | 10.0 | 60.0 | 45.0 | 47.0 | +2.0 ± 1.4 | 2 |",
        "| snow | 10.0 | 60.0 | 20.0 | 21.0 | +1.0 | 1 |",
    ]


def test_the_table_of_limits_shows_the_share_of_the_gap():
    rows = [
        {"run": name, "base": h, "new": h, "h": h} | more
        for name, h, more in (("student", 10.0, {}), ("teacher", 50.0, {}), ("x", 30.0, {"n_images": 4000, "steps": 9}))
    ]
    assert limits_table(rows).splitlines()[-1] == "| x | 4,000 | 9 | 30.0 / 30.0 / 30.0 | 50 % |"


@pytest.mark.parametrize("option", [["--seeds", "4"], ["--domains", "fog"]])
def test_unknown_seeds_and_domains_are_refused(option):
    result = CliRunner().invoke(app, ["boost-variants", *option])
    assert result.exit_code == 2
    assert option[1] in result.output


def test_the_documentation_shows_the_saved_numbers():
    assert variants_table(FILED["references"], FILED["rows"]) in PAGE
    assert limits_table(FILED["limits"]) in PAGE


def test_every_variant_is_filed_and_the_first_limits():
    assert {found["variant"] for found in FILED["rows"]} == {variant.label for variant in variants()}
    assert FILED["rows"][0]["variant"] == BASELINE
    measured = [found["run"] for found in FILED["limits"][3:]]
    assert measured == [limit.label for limit in LIMITS][: len(measured)]
    assert "the true labels instead of the teacher" in measured
