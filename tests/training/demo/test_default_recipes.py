"""The table of default recipes: computation on a tiny run, and the table in the documentation."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from prompted_clip.backbone import load_backbone
from training.adapting.coop import CoOpRecipe
from training.adapting.methods import METHODS, MethodEntry
from training.demo.default_recipes import DefaultRuns, markdown_table
from training.recipe import BoostRecipe

ROOT = Path(__file__).parents[3]


class ShortBoost(BoostRecipe):
    """Two epochs."""

    epochs: int = 2
    image_tokens: int = 2


class ShortCoOp(CoOpRecipe):
    """Two epochs."""

    epochs: int = 2


@pytest.fixture
def short_recipes(monkeypatch):
    monkeypatch.setattr("training.demo.default_recipes.BoostRecipe", ShortBoost)
    monkeypatch.setitem(METHODS, "coop", MethodEntry(ShortCoOp, METHODS["coop"].build))


def test_each_run_is_measured_on_test_images_before_and_after(tmp_path, short_recipes):
    backbone = load_backbone("demo-student")
    size = {"n_images": 24, "n_test": 20, "n_classes": 2}
    runs = DefaultRuns(backbone, "sepia", tmp_path, **size, console=Console(quiet=True))
    bundle = runs.boost(load_backbone("demo-teacher"))
    runs.adapt("coop", bundle)
    assert [(row["run"], row["on"]) for row in runs.rows] == [("boost", "plain"), ("coop", "boosted")]
    assert runs.rows[1]["before"] == runs.rows[0]["after"]
    assert all(0 <= row["after"] <= 100 and row["best_step"] <= row["steps"] for row in runs.rows)


def test_the_documentation_shows_the_saved_numbers():
    rows = json.loads((ROOT / "docs" / "results" / "demo-defaults.json").read_text())["rows"]
    assert markdown_table(rows) in (ROOT / "docs" / "demo-world.md").read_text()
