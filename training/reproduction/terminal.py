"""The plan and the comparison of a reproduction on the terminal and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from training.evaluation.estimate import format_duration
from training.reproduction.comparison import ComparedCell, advice, model_notes
from training.reproduction.results_file import ResultsFile


def show_plan(plan: dict[str, Any]) -> None:
    """Print the checked data sets, the estimates, and every problem."""
    console = Console()
    table = Table("data set", "train", "test", "size", "runs", "images", "time", "results")
    estimates = {each["name"]: each for each in plan["estimates"]}
    for found in plan["datasets"]:
        cells = ["missing or invalid", "", ""]
        if found["found"]:
            cells = [f"{found['n_train']:,}", f"{found['n_test']:,}", decimal(found["bytes"])]
        if of_runs := estimates.get(found["name"]):
            cells += [str(of_runs["runs"]), f"{of_runs['n_images']:,}", format_duration(of_runs["seconds"])]
            cells.append(decimal(of_runs["results_bytes"]))
        table.add_row(found["name"], *cells)
    console.print(table)
    for note in (note for found in plan["datasets"] for note in found["notes"]):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if plan["seconds"] is not None:
        console.print(
            f"total: {format_duration(plan['seconds'])}, {decimal(plan['results_bytes'])} of results; estimated from "
            f"{plan['estimated_from']}; finished runs are not left out",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if plan["seconds"] is not None and plan["not_estimated"]:
        console.print(
            f"note: without the training of {', '.join(plan['not_estimated'])}: label-free methods choose their images "
            "as they run, so their work is not known before",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    for number, problem in enumerate(plan["problems"], 1):
        line = f"problem {number} of {len(plan['problems'])}: {problem}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_comparison(results: ResultsFile, compared: Sequence[ComparedCell], tolerance: float) -> None:
    """Print measured rows next to the paper's, and a summary."""
    console = Console()
    table = Table("table", "data set", "method", "shots", "paper", "measured", "difference", "")
    for each in (each for each in compared if each.measured):
        cell, names = each.cell, list(each.measured)
        table.add_row(
            cell.protocol,
            cell.target,
            f"{cell.method}, boosted" if cell.boosted else cell.method,
            str(cell.shots),
            " / ".join(f"{each.paper[name]:.1f}" for name in names),
            " / ".join(f"{each.measured[name].mean:.1f}" for name in names),
            " / ".join(f"{each.differences[name]:+.1f}" for name in names),
            "agrees" if each.agrees else "differs",
        )
    console.print(table)
    for line in _summary(results, compared, tolerance):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _summary(results: ResultsFile, compared: Sequence[ComparedCell], tolerance: float) -> list[str]:
    """Lines on models, agreement and missing rows."""
    counts = Counter(each.agrees for each in compared)
    lines = [f"note: {note}" for note in model_notes(results)]
    if found := advice(compared):
        lines.append(found)
    lines.append(
        f"{counts[True]} of {len(compared)} rows of the paper agree within {tolerance:g} points, "
        f"{counts[False]} differ, {counts[None]} are not in the file"
    )
    return lines


def comparison_json(results: ResultsFile, compared: Sequence[ComparedCell], tolerance: float) -> dict[str, Any]:
    """The comparison as JSON values."""
    counts = Counter(each.agrees for each in compared)
    return {
        "tolerance": tolerance,
        "notes": model_notes(results),
        "advice": advice(compared),
        "agree": counts[True],
        "differ": counts[False],
        "missing": counts[None],
        "rows": [
            each.cell._asdict()
            | {
                "paper": each.paper,
                "measured": {name: asdict(found) for name, found in each.measured.items()},
                "agrees": each.agrees,
                "differences": each.differences,
            }
            for each in compared
        ],
    }
