"""Reports on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table


def show_report(content: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Print the report as JSON, or as compact tables without standard deviations."""
    if as_json:
        typer.echo(json.dumps(content))
        return
    console = Console()
    if "summaries" in content:
        console.print(_protocol_table(content))
        if content["published_means"]:
            console.print(_published_table(content))
    else:
        console.print(_bundle_table(content))
    console.print(f"full report: {out / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def _protocol_table(content: dict[str, Any]) -> Table:
    measures = list(content["summaries"][0]["change"])
    table = Table(title=f"{content['protocol']}: {' / '.join(measures)}, %")
    for column in ("data set", "method", "shots", "without boosting", "with boosting", "change"):
        table.add_column(column)
    has_published = any(each["published"] for each in content["summaries"])
    if has_published:
        table.add_column("published")
        table.add_column("published, boosted")
    for each in content["summaries"]:
        means = [{name: part["mean"] for name, part in each[side].items()} for side in ("plain", "boosted")]
        cells = [_rates(part, measures, ".1f") for part in means]
        cells.append(_rates(each["change"], measures, "+.1f"))
        if has_published:
            cells += [_rates(each[side] or {}, measures, ".1f") for side in ("published", "published_boosted")]
        table.add_row(each["target"], each["method"], str(each["shots"]), *cells)
    return table


def _published_table(content: dict[str, Any]) -> Table:
    """Published numbers of the measured methods, averaged over eleven data sets."""
    printed = {(each["method"], each["boosted"]): each.get("by_shots", each) for each in content["published_means"]}
    is_by_shots = "by_shots" in content["published_means"][0]
    by_shots = sorted({shots for side in printed.values() for shots in side}) if is_by_shots else []
    measures = by_shots or list(content["summaries"][0]["change"])
    of = f"accuracy with {' / '.join(map(str, measures))} shots" if is_by_shots else " / ".join(measures)
    table = Table(title=f"published for CLIP ViT-B/16 (OpenAI), mean over eleven data sets: {of}, %")
    for column in ("method", "without boosting", "with boosting"):
        table.add_column(column)
    for method in dict.fromkeys(method for method, _ in printed):
        sides = (printed.get((method, boosted), {}) for boosted in (False, True))
        table.add_row(method, *(_rates(side, measures, ".1f") for side in sides))
    return table


def _bundle_table(content: dict[str, Any]) -> Table:
    table = Table(
        "measure",
        "value",
        title=f"{content['domain'] or content['backbone']} on {content['dataset']}, {content['split']}",
    )
    texts = {"own": "its own", "open": "the data set's, not its own", "plain": "the data set's"}
    table.add_row("classes", f"{len(content['classes'])}, {texts[content['labels']]}")
    for name in ("n_images", "n_unreadable", "accuracy", "mean_class_accuracy"):
        value = content[name]
        table.add_row(name.replace("_", " "), f"{value:.2f} %" if isinstance(value, float) else str(value))
    return table


def _rates(rates: Mapping[str, float | None], measures: Sequence[str], style: str) -> str:
    """Format rates separated by slashes; missing ones are dashes."""
    found = [rates.get(name) for name in measures]
    if all(rate is None for rate in found):
        return "-"
    return " / ".join("-" if rate is None else format(rate, style) for rate in found)
