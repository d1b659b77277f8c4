"""Tables and findings of an ablation, from rows whose rates are known."""

import pytest

from training.ablation.report import AblationReport, published_markdown
from training.ablation.run import AblationJob
from training.ablation.settings import Grid, Setting
from training.evaluation.metrics import harmonic_mean
from training.evaluation.rows import ZERO_SHOT, Row

GRID = Grid((1, 2), tokens=(2, 4), default_tokens=4, budgets=(4,))
STUDIES = ("depth", "tokens", "budget")
FACTS = {name: {"arch": name, "pretrained": "", "fingerprint": ""} for name in ("student", "teacher")}


def row(base, new, *, dataset="four", method="promptsrc", seed=1):
    return Row(
        "base-to-new", dataset, dataset, method, True, 2, seed, "cell", None, 8,
        base=base, new=new, h=harmonic_mean(base, new),
    )  # fmt: skip


def report(score, studies=STUDIES):
    """A report whose settings have the rates (s, s) of `score(setting)` for seed 1 and (s + 2, s + 2) for seed 2."""
    job = AblationJob((), studies, GRID, "promptsrc", (1, 2), 2, None)
    rows = {
        setting: (
            row(score(setting), score(setting)),
            row(score(setting) + 2, score(setting) + 2, seed=2),
            row(10, 10, method=ZERO_SHOT, seed=None),
        )
        for setting in GRID.settings(studies)
    }
    return AblationReport(job, rows, FACTS)


def deeper_is_better(setting):
    return 50 + 4 * setting.boosting_depth + setting.adapting_depth - setting.learnable


def test_the_tables_hold_mean_and_deviation_over_seeds():
    found = report(deeper_is_better)
    assert [[cell.mean for cell in row] for row in found.depth_table()] == [[56, 57], [60, 61]]
    assert found.depth_table()[0][0].sd == pytest.approx(2**0.5)
    assert [[cell.mean for cell in row] for row in found.tokens_table(learnable=True)] == [[60, 60], [60, 60]]
    assert [(total, setting.is_boosted) for total, setting, _ in found.budget_rows()] == [(4, False), (4, True)]
    assert found.base_models()[4, 2]["h"].mean == pytest.approx(10)


def test_over_several_data_sets_h_is_that_of_the_mean_accuracies():
    job = AblationJob((), ("budget",), GRID, "promptsrc", (1,), 2, None)
    setting = GRID.budget_settings(4)[0]
    rows = (row(90, 30), row(50, 70, dataset="five"))
    found = AblationReport(job, {setting: rows}, FACTS)
    assert found.h(setting).mean == pytest.approx(harmonic_mean(70, 50))


def test_findings_hold_when_the_numbers_have_their_sign():
    findings = report(deeper_is_better).findings()
    assert [(each.measured, each.holds) for each in findings] == [
        ("+4.00 ± 0.00", True),
        ("+1.00 ± 0.00", True),
        ("in 4 of 4 cells, mean +1.00 ± 0.00", True),
        ("+8.00 ± 0.00", True),
    ]
    assert [each.paper for each in findings] == ["+1.94", "+1.31", "in every cell", "-"]


def test_the_deviation_of_a_gain_is_over_seeds():
    job = AblationJob((), ("budget",), GRID, "promptsrc", (1, 2), 2, None)
    alone, cascade = GRID.budget_settings(4)
    rows = {alone: (row(50, 50), row(60, 60, seed=2)), cascade: (row(52, 52), row(64, 64, seed=2))}
    (found,) = AblationReport(job, rows, FACTS).findings()
    assert found.measured == "+3.00 ± 1.41"


def test_findings_do_not_hold_when_the_numbers_have_the_other_sign():
    findings = report(lambda setting: 100 - deeper_is_better(setting)).findings()
    assert not any(each.holds for each in findings)
    assert findings[2].measured == "in 0 of 4 cells, mean -1.00 ± 0.00"


def test_a_study_that_was_not_selected_has_no_table_and_no_finding():
    found = report(deeper_is_better, ("budget",))
    assert "by depth" not in found.to_markdown()
    assert len(found.findings()) == 1


def test_cells_without_rows_are_dashes():
    job = AblationJob((), ("depth",), GRID, "promptsrc", (1,), 2, None)
    found = AblationReport(job, {GRID.depth_setting(1, 1): (row(50, 50),)}, FACTS)
    assert "| phase 1: 1 | 50.0 | - |" in found.to_markdown()
    assert found.findings() == []


def test_the_paper_s_tables_are_shown_with_their_source():
    text = published_markdown()
    assert "arXiv 2409.17805" in text
    assert "| phase 1: 12 | 82.30 | 82.43 | 82.83 | 83.25 | 83.51 |" in text
    assert "| 8 | 4 boosting + 4 adapting | 86.69 | 79.86 | 83.14 |" in text


def test_a_setting_reads_as_a_sentence():
    assert str(Setting(8, 12, 4, 9, learnable=True)) == (
        "8 learnable boosting prompts, depth 12; 4 adapting prompts, depth 9"
    )
    assert str(Setting(0, 0, 4, 9)) == "4 adapting prompts, depth 9"
