"""A report as a JSON object and as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from training.evaluation.metrics import Spread
from training.evaluation.published import BACKBONE, MEANS, PAPER_DATASETS, Published, published_shots
from training.evaluation.rows import ZERO_SHOT
from training.evaluation.summary import Report, Summary

_NOTHING: Final = "-"


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values: all rows, summaries, means, and published results."""
    summaries = [
        asdict(summary) | {"change": {name: summary.change(name) for name in report.measures}}
        for summary in report.summaries
    ]
    return {
        "protocol": report.protocol,
        "backbone": dict(report.backbone),
        "seeds": report.seeds,
        "rows": [asdict(row) for row in report.rows],
        "summaries": summaries,
        "means": [asdict(mean) for mean in report.means],
        "published_means": _printed_means(report),
    }


def to_markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, one table per data set.

    Args:
        report: the results.
        pictures: file names in the same folder.
    """
    seeds = ", ".join(map(str, report.seeds)) or "none"
    lines = [
        f"# {report.protocol.capitalize()}",
        "",
        f"Backbone {report.backbone['arch']}, weights {report.backbone['pretrained']}, "
        f"`{report.backbone['fingerprint']}`.",
        f"Accuracy in per cent, mean ± sample standard deviation over the seeds {seeds}; change in points.",
        "Prompts are those of the last training step, as in the papers.",
    ]
    summaries = report.summaries
    for dataset in dict.fromkeys(summary.dataset for summary in summaries):
        lines += ["", f"## {dataset}", "", *_table(report, [each for each in summaries if each.dataset == dataset])]
    if report.means:
        lines += ["", "## Mean over data sets", "", *_means_table(report)]
    if printed := _printed_means(report):
        lines += ["", "## Published", "", *_printed_table(report, printed)]
    for picture in pictures:
        lines += ["", f"![{picture.removesuffix('.png').replace('-', ' ')}]({picture})"]
    return "\n".join(lines) + "\n"


def _table(report: Report, summaries: Sequence[Summary]) -> list[str]:
    columns: list[tuple[str, list[str]]] = []
    if any(each.target != each.dataset for each in summaries):
        columns.append(("tested on", [each.target for each in summaries]))
    columns.append(("method", [each.method for each in summaries]))
    if len({each.shots for each in summaries if each.method != ZERO_SHOT}) > 1:
        columns.append(("shots", [str(each.shots) for each in summaries]))
    for name in report.measures:
        title = _title(name)
        columns.append((title, [_spread_text(each.plain.get(name)) for each in summaries]))
        columns.append((f"{title}, boosted", [_spread_text(each.boosted.get(name)) for each in summaries]))
        columns.append(("change", [_change_text(each.change(name)) for each in summaries]))
    if any(each.published is not None for each in summaries):
        title = f"published base / new / H, {BACKBONE}"
        columns.append((title, [_published_text(each.published) for each in summaries]))
        columns.append(("published, boosted", [_published_text(each.published_boosted) for each in summaries]))
    titles, cells = zip(*columns, strict=True)
    lines = markdown_table(titles, list(zip(*cells, strict=True)))
    for each in summaries:
        lines += [line for note in each.notes for line in ("", f"{each.method} on {each.target}: {note}")]
    return lines


def _means_table(report: Report) -> list[str]:
    titles = ["method", "shots", "data sets"]
    titles += [title for name in report.measures for title in (_title(name), f"{_title(name)}, boosted")]
    rows = [
        [
            mean.method,
            str(mean.shots),
            str(mean.n_datasets),
            *(_rate_text(part.get(name)) for name in report.measures for part in (mean.plain, mean.boosted)),
        ]
        for mean in report.means
    ]
    return markdown_table(titles, rows)


def _printed_means(report: Report) -> list[dict[str, Any]]:
    """Published averages of the evaluated methods; empty unless all data sets are the papers'."""
    if not report.rows or not {row.dataset for row in report.rows} <= set(PAPER_DATASETS):
        return []
    methods = list(dict.fromkeys(row.method for row in report.rows))
    if report.protocol == "base-to-new":
        found = [(method, boosted, MEANS.get((method, boosted))) for method in methods for boosted in (False, True)]
        return [
            {"method": method, "boosted": boosted} | asdict(printed)
            for method, boosted, printed in found
            if printed is not None
        ]
    if report.protocol == "few-shot":
        lists = [published_shots(method, boosted=boosted) for method in methods for boosted in (False, True)]
        return [
            {"method": each.method, "boosted": each.boosted, "by_shots": dict(each.by_shots), "source": each.source}
            for each in lists
            if each is not None
        ]
    return []


def _printed_table(report: Report, printed: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [f"{each['method']}, boosted" if each["boosted"] else str(each["method"]) for each in printed]
    if report.protocol == "base-to-new":
        titles = ["method", *map(_title, report.measures)]
        cells = [[_rate_text(each[name]) for name in report.measures] for each in printed]
    else:
        shots = sorted({n for each in printed for n in each["by_shots"]})
        titles = ["method", *(f"{n} shots" if n > 1 else "1 shot" for n in shots)]
        cells = [[_rate_text(each["by_shots"].get(n)) for n in shots] for each in printed]
    sources = "; ".join(dict.fromkeys(str(each["source"]) for each in printed))
    grid = markdown_table(titles, [[name, *row] for name, row in zip(names, cells, strict=True)])
    return [f"Mean over eleven data sets with {BACKBONE}. Source: {sources}.", "", *grid]


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; `|` in cells is escaped."""
    table = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]


def _title(measure: str) -> str:
    return "H" if measure == "h" else measure


def _spread_text(found: Spread | None) -> str:
    if found is None:
        return _NOTHING
    return f"{found.mean:.2f}" if found.sd is None else f"{found.mean:.2f} ± {found.sd:.2f}"


def _rate_text(rate: float | None) -> str:
    return _NOTHING if rate is None else f"{rate:.2f}"


def _change_text(change: float | None) -> str:
    return _NOTHING if change is None else f"{change:+.2f}"


def _published_text(found: Published | None) -> str:
    return _NOTHING if found is None else f"{found.base:.2f} / {found.new:.2f} / {found.h:.2f}"
