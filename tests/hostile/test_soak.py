"""The soak reports growing resources of a server, and wrong answers."""

import os
from types import SimpleNamespace

import pytest

from benchmarks.answers import Answer, Swap
from benchmarks.report import Report
from tests.hostile.soak import sample, summarize


def answer(status=200, version=1):
    return Answer(1.0, 1.0, 1.1, status, "domain-0", "domain-0", version, "sha256:1")


def soaked(rows, *answers):
    report = Report("soak", {})
    swaps = [Swap("domain-0", 1, -float("inf"), -float("inf"))]
    watch = SimpleNamespace(samples=[(5.0 * n, *row) for n, row in enumerate(rows)], swaps=swaps, errors=[])
    summarize(report, watch, list(answers), {("domain-0", 1): "sha256:1"}, 8.0, 1.0)
    return {name: number["met"] for name, number in report.numbers.items() if "met" in number}


def test_constant_resources_meet_every_target():
    assert set(soaked([(900.0, 8, 10, 0)] * 40, answer(), answer(422)).values()) == {True}


@pytest.mark.parametrize("column", range(4))
def test_a_leak_misses_its_target(column):
    rows = [tuple(value + n * (at == column) for at, value in enumerate((900.0, 8, 10, 0))) for n in range(40)]
    missed = [name for name, met in soaked(rows, answer()).items() if not met]
    assert len(missed) == 1
    assert missed[0].endswith("_growth")


def test_growth_while_the_server_warms_up_is_no_leak():
    rows = [(900.0 + 50 * min(n, 9), 8, 10, 0) for n in range(40)]
    assert soaked(rows, answer())["soak_resident_mib_growth"]


@pytest.mark.parametrize(
    ("wrong", "name"), [(answer(500), "soak_failed"), (answer(version=2), "soak_stale"), (answer(429), "soak_failed")]
)
def test_a_wrong_answer_misses_its_target(wrong, name):
    assert not soaked([(900.0, 8, 10, 0)] * 40, answer(), wrong)[name]


def test_a_sample_counts_the_resources_of_a_process(tmp_path):
    before = sample(os.getpid(), [tmp_path])
    (tmp_path / ".tmp-1").write_bytes(b"")
    with (tmp_path / "open").open("wb"):
        after = sample(os.getpid(), [tmp_path])
    assert before[0] > 10
    assert before[2] >= 1
    assert (after[1] - before[1], after[3] - before[3]) == (1, 1)
