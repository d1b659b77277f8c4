"""Summaries over seeds, and reports as JSON and Markdown."""

import json
import re
import statistics

import pytest

from training.evaluation.metrics import harmonic_mean
from training.evaluation.published import PAPER_DATASETS
from training.evaluation.report import to_json, to_markdown
from training.evaluation.rows import ZERO_SHOT, Row
from training.evaluation.summary import Report

BACKBONE = {"arch": "tiny", "pretrained": "random:0", "fingerprint": "sha256:0"}
BASE = {False: {1: 60.0, 2: 64.0, 3: 71.0}, True: {1: 70.0, 2: 73.5, 3: 75.0}}
NEW = {False: {1: 50.0, 2: 40.0, 3: 45.0}, True: {1: 66.0, 2: 60.0, 3: 61.0}}


def halves(base, new, *, dataset="dtd", method="coop", boosted=False, seed=1, note=""):
    return Row(
        protocol="base-to-new",
        dataset=dataset,
        target=dataset,
        method=method,
        boosted=boosted,
        shots=16 if method != ZERO_SHOT else 0,
        seed=seed,
        cell=f"{dataset}-{method}-{boosted}-{seed}",
        training=None,
        n_images=8,
        base=base,
        new=new,
        h=harmonic_mean(base, new) if new is not None else None,
        note=note,
    )


def overall(accuracy, *, protocol="few-shot", dataset="dtd", target=None, method="coop", boosted=False, shots=16):
    return Row(
        protocol=protocol,
        dataset=dataset,
        target=target or dataset,
        method=method,
        boosted=boosted,
        shots=shots,
        seed=1,
        cell=f"{dataset}-{target}-{method}-{boosted}-{shots}",
        training=None,
        n_images=8,
        accuracy=accuracy,
    )


def report_of(*rows, protocol="base-to-new"):
    return Report(protocol, BACKBONE, rows)


@pytest.fixture
def report():
    seeded = [
        halves(BASE[boosted][seed], NEW[boosted][seed], boosted=boosted, seed=seed)
        for boosted in (False, True)
        for seed in (1, 2, 3)
    ]
    return report_of(halves(53.0, 59.0, method=ZERO_SHOT, seed=None), *seeded)


def table(markdown, heading):
    """The cells of the table below a heading, as one mapping per row."""
    section = markdown.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    titles, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    # a "change" column follows each measure: rename it so that the keys are unique
    names = [f"{titles[i - 2]} change" if title == "change" else title for i, title in enumerate(titles)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_a_summary_is_mean_and_sample_deviation_over_the_seeds(report):
    zero_shot, coop = report.summaries
    assert coop.plain["base"].mean == pytest.approx(statistics.mean(BASE[False].values()))
    assert coop.boosted["new"].sd == pytest.approx(statistics.stdev(NEW[True].values()))
    by_seed = [harmonic_mean(BASE[True][seed], NEW[True][seed]) for seed in (1, 2, 3)]
    assert coop.boosted["h"].mean == pytest.approx(statistics.mean(by_seed))
    assert coop.change("new") == pytest.approx(187 / 3 - 45)
    assert (zero_shot.plain["base"].sd, zero_shot.boosted, zero_shot.change("h")) == (None, {}, None)


def test_markdown_and_json_agree(report):
    content = json.loads(json.dumps(to_json(report)))
    rows = table(to_markdown(report), "dtd")
    assert [row["method"] for row in rows] == [each["method"] for each in content["summaries"]]
    for row, each in zip(rows, content["summaries"], strict=True):
        for measure in ("base", "new", "h"):
            title = measure.replace("h", "H")
            for cell, found in ((row[title], each["plain"]), (row[f"{title}, boosted"], each["boosted"])):
                if measure not in found:
                    assert cell == "-"
                    continue
                mean, _, sd = cell.partition(" ± ")
                assert float(mean) == pytest.approx(found[measure]["mean"], abs=0.005)
                assert (float(sd) if sd else None) == pytest.approx(found[measure]["sd"], abs=0.005)
            change = each["change"][measure]
            assert row[f"{title} change"] == ("-" if change is None else f"{change:+.2f}")
    assert content["seeds"] == [1, 2, 3]
    assert len(content["rows"]) == 7


def test_published_numbers_are_shown_for_the_papers_data_sets_only(report):
    zero_shot, coop = table(to_markdown(report), "dtd")
    assert zero_shot["published base / new / H, CLIP ViT-B/16 (OpenAI)"] == "53.24 / 59.90 / 56.37"
    assert zero_shot["published, boosted"] == "-"
    assert coop["published base / new / H, CLIP ViT-B/16 (OpenAI)"] == "79.44 / 41.18 / 54.24"
    assert coop["published, boosted"] == "82.57 / 54.23 / 65.47"
    printed = table(to_markdown(report), "Published")
    assert [row["method"] for row in printed] == [ZERO_SHOT, "coop", "coop, boosted"]
    assert printed[2] == {"method": "coop, boosted", "base": "84.78", "new": "74.49", "H": "79.30"}

    own = report_of(halves(53.0, 59.0, dataset="four", method=ZERO_SHOT, seed=None))
    assert "published" not in to_markdown(own).lower()
    assert to_json(own)["published_means"] == []
    assert to_json(own)["summaries"][0]["published"] is None


def test_a_missing_rate_is_a_dash_with_a_reason_below():
    markdown = to_markdown(report_of(halves(60.0, None, note="own classes only"), halves(62.0, 50.0, boosted=True)))
    (row,) = table(markdown, "dtd")
    assert (row["base"], row["new"], row["H"], row["new, boosted"], row["new change"]) == (
        "60.00",
        "-",
        "-",
        "50.00",
        "-",
    )
    assert "coop on dtd: own classes only" in markdown


def test_the_h_of_a_mean_is_computed_from_mean_base_and_mean_new():
    rates = {name: (50.0 + number, 70.0 - 2 * number) for number, name in enumerate(PAPER_DATASETS)}
    report = report_of(*(halves(base, new, dataset=name) for name, (base, new) in rates.items()))
    (mean,) = report.means
    assert (mean.n_datasets, mean.boosted) == (11, {})
    assert mean.plain == pytest.approx({"base": 55.0, "new": 60.0, "h": harmonic_mean(55.0, 60.0)})
    (row,) = table(to_markdown(report), "Mean over data sets")
    assert (row["method"], row["base"], row["H"], row["H, boosted"]) == ("coop", "55.00", "57.39", "-")


def test_few_shot_rows_are_listed_by_shots_above_the_published_ones():
    report = report_of(overall(40.0, shots=1), overall(50.0, shots=16), protocol="few-shot")
    markdown = to_markdown(report)
    assert [(row["shots"], row["accuracy"]) for row in table(markdown, "dtd")] == [("1", "40.00"), ("16", "50.00")]
    (printed,) = table(markdown, "Published")
    assert (printed["1 shot"], printed["16 shots"]) == ("67.56", "79.89")


def test_published_few_shot_results_may_be_for_some_shots_only():
    report = report_of(overall(50.0, shots=16), overall(60.0, method="gda", shots=16), protocol="few-shot")
    coop, gda = table(to_markdown(report), "Published")
    assert (coop["1 shot"], coop["16 shots"]) == ("67.56", "79.89")
    assert (gda["1 shot"], gda["16 shots"]) == ("-", "81.85")


def test_across_data_sets_the_mean_excludes_the_source():
    rates = {"imagenet": 70.0, "dtd": 45.0, "eurosat": 50.0}
    rows = [overall(rate, protocol="cross-dataset", dataset="imagenet", target=name) for name, rate in rates.items()]
    report = report_of(*rows, protocol="cross-dataset")
    assert [(row["tested on"], row["accuracy"]) for row in table(to_markdown(report), "imagenet")] == [
        ("imagenet", "70.00"),
        ("dtd", "45.00"),
        ("eurosat", "50.00"),
    ]
    (mean,) = report.means
    assert (mean.n_datasets, mean.plain) == (2, {"accuracy": 47.5})


def test_a_name_cannot_break_the_table():
    report = report_of(overall(50.0, target="a|b", protocol="cross-dataset"), protocol="cross-dataset")
    (row,) = table(to_markdown(report), "dtd")
    assert row["tested on"] == r"a\|b"
