"""Tables of few-shot heads: their cells, and that the documentation shows the recorded ones."""

import json
from pathlib import Path

from training.demo import adapt_domains
from training.demo.fit_domains import CHECKS, METHODS, SHOTS
from training.demo.fit_tables import ADAPT_LINES, adapt_lines, checks_table, markdown_table, unlabelled_table

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"


def rows():
    """Two domains, two seeds; base is shots + seed, and 20 more with boosting."""
    made = []
    for domain in ("fog", "snow"):
        for boosted in (False, True):
            facts = {"domain": domain, "boosted": boosted}
            made.append(
                facts | {"method": "zero-shot", "shots": 0, "seed": None, "base": 9, "new": 9, "h": 9, "all": 9}
            )
            for method in METHODS:
                for shots in SHOTS:
                    for seed in (1, 2):
                        base = shots + seed + 20 * boosted
                        found = {"base": base, "new": 30, "h": base + 5, "all": base / 2}
                        made.append(facts | {"method": method, "shots": shots, "seed": seed} | found)
    return made


def test_the_table_has_boosted_base_accuracy_by_shots_then_h_and_all_classes():
    header, _, text, *methods = markdown_table(rows()).splitlines()
    assert header == "| images per class | 1 | 2 | 4 | 8 | 16 | H, 16 | all 80 classes, 16 |"
    assert text == "| text features | 9.0 | 9.0 | 9.0 | 9.0 | 9.0 | 9.0 | 9.0 |"
    assert methods[0] == "| `gda` | 22.5 | 23.5 | 25.5 | 29.5 | 37.5 | 42.5 | 18.8 |"
    assert len(methods) == len(METHODS) - 1  # without `auto-unlabelled`, which has its own table


def test_the_table_of_unlabelled_images_compares_fits_of_the_plain_and_the_boosted_student():
    lines = unlabelled_table(rows()).splitlines()
    assert len(lines) == 2 + 6
    assert lines[2] == "| plain student, text features | 9.0 | 9.0 | 9.0 | 9.0 | 9.0 |"
    assert lines[4] == "| plain student, `auto` with `--unlabelled` | 2.5 | 3.5 | 5.5 | 9.5 | 17.5 |"
    assert lines[6] == "| boosted student, `auto` | 22.5 | 23.5 | 25.5 | 29.5 | 37.5 |"


def test_lines_for_the_table_of_adapting_methods_have_deviations_over_seeds_and_the_gain_of_boosting():
    lines = adapt_lines(rows()).splitlines()
    assert len(lines) == len(ADAPT_LINES)
    plain, boosted = "5.5 ± 0.7 / 30.0 ± 0.0 / 10.5 ± 0.7", "25.5 ± 0.7 / 30.0 ± 0.0 / 30.5 ± 0.7"
    assert lines[0] == f"| `caspl fit`, 4 images | {plain} | {boosted} | +20.0 |"


def test_checks_are_averaged_over_seeds_and_domains():
    checks = [
        {"domain": domain, "seed": seed} | dict.fromkeys(CHECKS, value + seed)
        for domain, value in (("fog", 10), ("snow", 20))
        for seed in (1, 2)
    ]
    header, _, *lines = checks_table(checks).splitlines()
    assert header.endswith("| abstained, 1 % | abstained, 5 % | abstained, 10 % |")
    assert [line.split(" | ")[:2] for line in lines] == [["| fog", "11.5"], ["| snow", "21.5"], ["| mean", "16.5"]]


def test_the_documentation_shows_the_recorded_tables():
    fitted, adapted = (json.loads((RESULTS / name).read_text()) for name in ("demo-fit.json", "demo.json"))
    page = (ROOT / "docs" / "few-shot.md").read_text(encoding="utf-8")
    assert f"<!-- demo-fit:start -->\n{markdown_table(fitted['rows'])}\n<!-- demo-fit:end -->" in page
    table = unlabelled_table(fitted["rows"])
    assert f"<!-- demo-fit-unlabelled:start -->\n{table}\n<!-- demo-fit-unlabelled:end -->" in page
    assert f"<!-- demo-fit-checks:start -->\n{checks_table(fitted['checks'])}\n<!-- demo-fit-checks:end -->" in page
    table = f"{adapt_domains.markdown_table(adapted['rows'])}\n{adapt_lines(fitted['rows'])}"
    assert f"<!-- demo-adapt:start -->\n{table}\n<!-- demo-adapt:end -->" in (ROOT / "README.md").read_text()
