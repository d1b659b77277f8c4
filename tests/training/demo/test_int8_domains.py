"""The comparison of int8 with float32 in the demo domains."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.openvino_extra import needs_openvino
from training.demo import int8_domains
from training.demo.int8_domains import int8_table, measure_int8, write_results

ROOT = Path(__file__).parents[3]
BUNDLES = ROOT / "service" / "demo" / "bundles"


def test_a_change_is_the_difference_of_accuracies_with_its_standard_error():
    labels = np.array([0, 1, 2, 3])
    classes = {"float32": np.array([0, 1, 0, 0]), "int8": np.array([0, 0, 2, 3])}
    assert int8_domains._compare(classes, labels) == {
        "float32": 50.0, "int8": 75.0, "change": 25.0, "standard_error": 41.46, "equal": 25.0
    }  # fmt: skip


def test_the_table_in_the_documentation_is_that_of_the_results():
    results = json.loads((ROOT / "docs" / "results" / "demo-int8.json").read_text())
    assert int8_table(results) in (ROOT / "docs" / "demo-world.md").read_text()
    assert f"{results['n_test']:,} images per domain" in " ".join((ROOT / "docs" / "demo-world.md").read_text().split())


@needs_openvino
@pytest.mark.slow
def test_int8_hardly_changes_the_accuracy_of_text_features_and_fitted_heads(tmp_path):
    (rows,) = measure_int8(BUNDLES, ["negative"], n_test=300, console=Console(quiet=True))
    assert {(row["stack"], row["head"]) for row in rows} == {
        (stack, head) for stack in ("plain", "boosted") for head in ("text", "fitted")
    }
    assert all(90 < row["equal"] <= 100 for row in rows)
    write_results(rows, tmp_path / "int8.json", n_test=300)
    assert json.loads((tmp_path / "int8.json").read_text())["rows"] == rows
