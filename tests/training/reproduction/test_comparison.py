"""Results files: validation, and comparison with the paper's tables."""

import json

import pytest

from training.errors import DatasetError
from training.evaluation.metrics import harmonic_mean
from training.reproduction.comparison import advice, compare, model_notes, paper_cells
from training.reproduction.results_file import read_results
from training.reproduction.tables import IMAGE_COUNTS, TABLES, VARIANTS

PAPER_MODELS = {
    "student": {"arch": "ViT-B-16-quickgelu", "pretrained": "openai", "fingerprint": "sha256:0"},
    "teacher": {"arch": "ViT-L-14-quickgelu", "pretrained": "openai", "fingerprint": "sha256:1"},
}


def paper_row(cell, paper, seed=1, shift=0.0):
    """The row of a results file that equals the paper's, or is `shift` points above it."""
    protocol, dataset, target, method, boosted, shots = cell
    base, new = (paper[name] + shift if name in paper else None for name in ("base", "new"))
    if "h" in paper and base is None:
        base = new = paper["h"] + shift
    return {
        "protocol": protocol,
        "dataset": dataset,
        "target": target,
        "method": method,
        "boosted": boosted,
        "shots": shots,
        "seed": seed,
        "n_images": 100,
        "accuracy": paper["accuracy"] + shift if "accuracy" in paper else None,
        "base": base,
        "new": new,
        "h": harmonic_mean(base, new) if base is not None else None,
    }


@pytest.fixture
def written(tmp_path):
    """A function that writes rows as a results file and reads it."""

    def write(rows, **changes):
        content = {
            "format": "caspl-results-1",
            "code_version": "0.1.0",
            **PAPER_MODELS,
            "device": "cpu",
            "overrides": [],
            "boost_overrides": [],
            "data": {name: {"digest": "", "n_train": 0, "n_test": 1} for name in IMAGE_COUNTS},
            "rows": rows,
        } | changes
        path = tmp_path / "results.json"
        path.write_text(json.dumps(content))
        return read_results(path)

    return write


def test_the_papers_own_numbers_agree_everywhere(written):
    cells = list(paper_cells())
    results = written([paper_row(cell, paper) for cell, paper in cells])
    compared = compare(results, 0.02)
    assert len(compared) == len(cells)
    assert all(each.agrees for each in compared)
    assert (model_notes(results), advice(compared)) == ([], None)


def test_every_row_of_the_papers_tables_is_compared():
    cells = [cell for cell, _ in paper_cells()]
    by_table = {name: sum(cell.protocol == name for cell in cells) for name in TABLES}
    assert by_table == {
        "base-to-new": 11 * 10,  # zero-shot and four methods, each with and without boosting
        "domain-generalisation": 4 * 10,  # without ImageNet-A
        "few-shot": 11 * 2 * 5,
    }
    assert not [cell for cell in cells if cell.target == "imagenet_a"]
    assert set(VARIANTS) <= set(IMAGE_COUNTS)


def test_a_difference_beyond_the_tolerance_differs_and_the_mean_over_seeds_counts(written):
    cell, paper = next(
        (cell, paper) for cell, paper in paper_cells() if cell[:5] == ("base-to-new", "dtd", "dtd", "promptsrc", True)
    )
    rows = [paper_row(cell, paper, seed, shift) for seed, shift in ((1, -3.0), (2, 0.0), (3, 3.0))]
    (found,) = (each for each in compare(written(rows), 0.1) if each.measured)
    assert found.agrees
    assert found.measured["base"].n == 3
    assert found.measured["base"].sd == pytest.approx(3.0)

    (found,) = (each for each in compare(written(rows[2:]), 1.0) if each.measured)
    assert not found.agrees
    assert found.differences["base"] == pytest.approx(3.0)


def test_rows_that_are_not_in_the_file_are_missing_and_tables_without_rows_are_left_out(written):
    cell, paper = next(iter(paper_cells()))
    compared = compare(written([paper_row(cell, paper)]), 1.0)
    assert {each.cell.protocol for each in compared} == {"base-to-new"}
    assert sum(each.agrees is None for each in compared) == 109


def test_the_advice_names_the_data_sets_whose_plain_zero_shot_rows_differ(written):
    cell, paper = next(iter(paper_cells()))
    assert cell.method == "zero-shot"
    compared = compare(written([paper_row(cell, paper, None, 5.0)]), 1.0)
    assert "rows differ on imagenet" in advice(compared)


def test_other_models_changed_recipes_and_incomplete_data_are_noted(written):
    other = {"arch": "ViT-B-32", "pretrained": "openai", "fingerprint": ""}
    data = {"dtd": {"digest": "", "n_train": 1, "n_test": 1, "notes": ["dtd: 1 train image"]}}
    notes = model_notes(written([], student=other, overrides=["epochs=1"], data=data))
    assert notes == [
        "The student is ViT-B-32 with weights openai; the paper's is ViT-B-16 with openai.",
        "Recipes were changed: epochs=1.",
        "dtd: 1 train image",
    ]


def test_test_images_that_could_not_be_read_are_noted(written):
    data = {"imagenet": {"digest": "", "n_train": 1, "n_test": 1200}}
    assert model_notes(written([row()], data=data)) == ["imagenet: only 100 of 1,200 test images could be read."]


def row(**changes):
    cell, paper = next(iter(paper_cells()))
    return paper_row(cell, paper) | changes


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([row(h=99.0)], {}, r"h is 99.0, but base 72.43 and new 68.14 give 70.22"),
        ([row(base=101.0)], {}, "rows.0.base: Input should be less than or equal to 100"),
        ([row(), row()], {}, "two rows for base-to-new, imagenet"),
        ([row(dataset="own")], {}, "that `data` does not list: own"),
        ([], {"format": "other"}, "format: Input should be 'caspl-results-1'"),
        ([], {"student": {}}, "student.arch: Field required"),
    ],
)
def test_an_inconsistent_file_is_refused_with_the_reason(written, rows, changes, message):
    with pytest.raises(DatasetError, match=message):
        written(rows, **changes)


def test_a_file_that_is_not_json_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("{")
    with pytest.raises(DatasetError, match="is not a results file of `caspl reproduce`"):
        read_results(path)
