"""Shared boosting: its runs, the choice of a prompt set, and the tables in docs/demo-world.md."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from training.demo import shared_domains
from training.demo.shared_domains import OWN_EPOCHS, START, Budget, SharedRuns, own_run, planned, shared_run
from training.demo.shared_tables import share_table, start_table, with_chosen
from training.demo.shifts import SHIFTED

ROOT = Path(__file__).parents[3]
BUDGET = Budget()


def row(way, domain, accuracy, left_out=None, seed=None, agreement=50.0, epochs=4):
    facts = {"way": way, "seed": seed, "left_out": left_out, "epochs": epochs, "domain": domain}
    return facts | {"accuracy": accuracy, "agreement": agreement}


def measured():
    """Plain 20 %, own 60 %; other domains' bundles 24 %, but `night` 36 %, and `sketch` 28 % with most agreement."""
    rows = [row("plain", domain, 20.0, agreement=30.0) for domain in SHIFTED]
    for own in SHIFTED:
        for domain in SHIFTED:
            accuracy = 60.0 if own == domain else {"night": 36.0, "sketch": 28.0}.get(own, 24.0)
            rows.append(row("own", domain, accuracy, own, agreement=70.0 if own == "sketch" else 50.0))
    return rows


def unions(seed=1):
    """Shared prompts: 40 % where they saw the domain, 10 % where they did not."""
    return [
        row("union", domain, 10.0 if left_out == domain else 40.0, left_out, seed)
        for left_out in SHIFTED
        for domain in SHIFTED
    ]


def cells(table, line):
    found = next(text for text in table.splitlines() if text.startswith(f"| {line} "))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_share_compares_the_gain_with_that_of_the_domains_own_boosting():
    table = share_table([*measured(), *unions(), *unions(seed=2)])
    assert cells(table, "domain")[3:] == ["union, seen", "union, unseen"]
    assert cells(table, "thermal") == ["thermal", "20.0", "60.0", "50", "-25"]
    assert cells(table, "mean")[3:] == ["**50**", "**-25**"]


def test_a_tiny_loss_has_no_minus_sign():
    rows = [found | {"accuracy": 19.9} for found in unions()]
    assert cells(share_table([*measured(), *rows]), "thermal")[3:] == ["0", "0"]


def test_a_column_without_all_domains_has_no_mean():
    rows = [*measured(), *(found for found in unions() if found["left_out"] == "thermal")]
    table = share_table(rows)
    assert cells(table, "sketch")[3:] == ["50", ""]
    assert cells(table, "mean")[3:] == ["", ""]


def test_the_chosen_and_the_best_prompts_never_saw_the_domain():
    rows = with_chosen([*measured(), *unions()])
    chosen, best = (
        {found["domain"]: found["source"] for found in rows if found["way"] == way} for way in ("chosen", "best")
    )
    assert chosen.pop("sketch") == "thermal"  # the first of equal ones
    assert set(chosen.values()) == {"sketch"}
    assert best.pop("night") == "sketch"
    assert set(best.values()) == {"night"}
    assert cells(share_table(rows), "thermal")[-2:] == ["20", "40"]


def test_the_start_table_shows_domains_with_all_runs():
    rows = [
        row(way, domain, 10.0 + epochs + (5.0 if way == "start" else 0), domain, 1, epochs=epochs)
        for domain in ("thermal", "night")
        for way in ("cold", "start")
        for epochs in OWN_EPOCHS
        if (domain, way, epochs) != ("night", "start", OWN_EPOCHS[-1])
    ]
    rows += [
        row("cold", "thermal", 14.0, "thermal", 2, epochs=2),
        row("start", "thermal", 19.0, "thermal", 2, epochs=2),
    ]
    table = start_table(rows)
    assert cells(table, "domain") == ["domain", "2 epochs", "4 epochs", "8 epochs"]
    assert cells(table, "thermal") == ["thermal", "13.0 → 18.0", "14.0 → 19.0", "18.0 → 23.0"]
    assert cells(table, "mean")[1:] == cells(table, "thermal")[1:]
    assert "night" not in table


def test_every_domain_is_left_out_once_and_a_start_never_saw_its_domain():
    runs = list(planned(1, BUDGET))
    for way in ("union", "union+styles"):
        assert [run.left_out for run in runs if run.way == way] == list(SHIFTED)
    for run in runs:
        if run.left_out is not None and run.way.startswith("union"):
            assert run.left_out not in dict(run.sources)
        if run.start is not None:
            assert run.start == shared_run(START, run.left_out, 1, BUDGET)
            assert dict(run.sources).keys() == {run.left_out}
    assert {sum(dict(run.sources).values()) for run in runs if run.way not in {"cold", "start"}} == {BUDGET.n_images}


@pytest.mark.slow
def test_runs_are_trained_and_measured_once(tmp_path, monkeypatch):
    for name, value in (("N_OWN", 32), ("N_TEST", 40), ("N_CHECKED", 10)):
        monkeypatch.setattr(shared_domains, name, value)
    runs = SharedRuns(ROOT / "service" / "demo" / "bundles", tmp_path, Console(quiet=True))
    start = shared_run(START, "thermal", 1, Budget(n_images=40, epochs=1))
    found = [runs.measure(run) for run in (start, own_run("thermal", 1, 1, start))]
    assert [entry["domain"] for entry in found[0]] == list(SHIFTED)
    assert [(entry["way"], entry["domain"]) for entry in found[1]] == [("start", "thermal")]
    monkeypatch.setattr(shared_domains, "run_boost", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(shared_domains, "stack_scores", lambda *_: pytest.fail("measured again"))
    assert runs.measure(start) == found[0]


def test_the_page_shows_the_saved_numbers():
    rows = json.loads((ROOT / "docs" / "results" / "demo-shared-boost.json").read_text())["rows"]
    page = (ROOT / "docs" / "demo-world.md").read_text()
    assert share_table(rows) in page
    assert start_table(rows) in page


def test_the_saved_choices_follow_from_the_saved_rows():
    rows = json.loads((ROOT / "docs" / "results" / "demo-shared-boost.json").read_text())["rows"]
    assert with_chosen([found for found in rows if "source" not in found]) == rows
