"""Boosting from one teacher or two: the plan, the runs and their cache, and the tables in docs/demo-world.md."""

import json
from pathlib import Path

import pytest

from training.demo import teacher_runs
from training.demo.shifts import SHIFTED
from training.demo.teacher_runs import ARMS, Sizes, TeacherRuns, planned
from training.demo.teacher_tables import complete_seeds, gaps_table, targets_table

ROOT = Path(__file__).parents[3]
BOTH = ("both, mean", "both, entropy", "both, agreement")


def measured(student=10.0, first=50.0, second=40.0, both=55.0):
    h = {"student": student, "first teacher": first, "second teacher": second} | dict.fromkeys(BOTH, both)
    return [{"domain": domain, "model": name, "h": rate} for domain in SHIFTED for name, rate in h.items()]


def runs(seed, first, both):
    h = {"first teacher": first} | dict.fromkeys(BOTH, both)
    return [
        {"seed": seed, "domain": domain, "model": name, "h": rate} for domain in SHIFTED for name, rate in h.items()
    ]


def cells(table, line):
    found = next(text for text in table.splitlines() if text.startswith(f"| {line} "))
    return [cell.strip() for cell in found.strip("|").split("|")[1:]]


def test_every_arm_runs_in_every_domain_and_a_seed_is_complete_before_the_next():
    found = list(planned([1, 2]))
    assert len(found) == len(set(found)) == 2 * len(SHIFTED) * len(ARMS)
    assert [seed for seed, _, _ in found] == sorted(seed for seed, _, _ in found)


def test_the_share_of_the_gap_compares_with_student_and_first_teacher():
    rows = [*runs(1, 30.0, 34.0), *runs(2, 34.0, 34.0)]
    table = gaps_table(measured(), rows)
    assert cells(table, "domain") == ["first teacher", *BOTH]
    assert cells(table, "night") == ["55.0", "60.0", "60.0", "60.0"]
    assert cells(table, "mean") == ["**55.0**", *["**60.0**"] * 3]
    assert cells(table, "difference") == ["", *["+5.0 ± 0.0"] * 3]


def test_the_standard_error_of_the_difference_is_over_domains():
    rows = runs(1, 30.0, 34.0)
    for row in rows:
        if row["domain"] == "night" and row["model"] == "both, mean":
            row["h"] += 12.0  # 30 points of the gap more than elsewhere, so 5 more on average
    assert cells(gaps_table(measured(), rows), "difference") == ["", "+15.0 ± 5.0", "+10.0 ± 0.0", "+10.0 ± 0.0"]


def test_a_seed_without_all_runs_is_not_in_the_table():
    rows = [*runs(1, 30.0, 34.0), *runs(2, 34.0, 34.0)[:-1]]
    assert complete_seeds(rows) == [1]
    assert gaps_table(measured(), rows) == gaps_table(measured(), runs(1, 30.0, 34.0))


def test_the_table_of_targets_has_a_column_for_each_model():
    table = targets_table(measured())
    assert cells(table, "thermal") == ["10.0", "50.0", "40.0", "55.0", "55.0", "55.0"]
    assert cells(table, "mean") == ["**10.0**", "**50.0**", "**40.0**", "**55.0**", "**55.0**", "**55.0**"]


@pytest.mark.slow
def test_runs_have_equal_steps_and_are_trained_and_measured_once(tmp_path, monkeypatch):
    found = TeacherRuns(tmp_path, Sizes(n_images=20, epochs=2, n_test=80))
    references, rows = found.references("thermal"), [found.row(1, "thermal", arm) for arm in ARMS]
    assert [row["model"] for row in references] == ["student", "second teacher", *(arm.label for arm in ARMS)]
    assert {row["steps"] for row in rows} == {6}
    assert len({(row["base"], row["new"]) for row in rows}) > 1
    monkeypatch.setattr(teacher_runs, "run_boost", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(teacher_runs, "stack_scores", lambda *_: pytest.fail("measured again"))
    assert found.references("thermal") == references
    assert [found.row(1, "thermal", arm) for arm in ARMS] == rows


def test_the_page_shows_the_saved_numbers():
    saved = json.loads((ROOT / "docs" / "results" / "demo-teachers.json").read_text())
    page = (ROOT / "docs" / "demo-world.md").read_text()
    assert targets_table(saved["references"]) in page
    assert gaps_table(saved["references"], saved["rows"]) in page


def test_all_saved_runs_have_the_same_number_of_steps():
    saved = json.loads((ROOT / "docs" / "results" / "demo-teachers.json").read_text())
    assert len({row["steps"] for row in saved["rows"]}) == 1
    assert complete_seeds(saved["rows"]) == sorted({row["seed"] for row in saved["rows"]})
