"""The report of a few-shot fit as tables."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

MAX_PRINTED: Final = 20
"""Suspects listed without --json."""


def print_report(report: Mapping[str, Any], facts: Mapping[str, object]) -> None:
    """Print the classes, the worst suspects, and a summary.

    Args:
        report: a `FitReport` as JSON values, each suspect with its `file`.
        facts: further rows of the summary.
    """
    console, accuracy = Console(), report["accuracy"]
    classes = Table("class", "images", "accuracy", "with half", "text features", "mistaken for", title="classes")
    for one in report["classes"]:
        rates = [one["accuracy"] and one["accuracy"]["rate"], one["half_accuracy"], one["text_accuracy"]]
        cells = ["-" if rate is None else f"{rate:.0%}" for rate in rates]
        images = f"{one['n_examples']}{'' if one['is_fitted'] else ' (text features only)'}"
        _add(classes, one["name"], images, *cells, one["mistaken_for"] or "-")
    console.print(classes)
    if suspects := report["suspects"]:
        n_more = len(suspects) - MAX_PRINTED
        lines = ["Labels to check, worst first:"]
        # Lines instead of a table, which would break long paths.
        lines += [f"  {one['file']}: {one['label']}, predicted {one['predicted']}" for one in suspects[:MAX_PRINTED]]
        lines += [f"  and {n_more} more, listed by --json"] if n_more > 0 else []
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    summary = Table("measure", "value", title="fitted")
    rows = {
        "method": report["method"],
        "images": report["n_examples"],
        **_unlabelled(report),
        "accuracy (leave-one-out)": f"{accuracy['rate']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})",
        "accuracy with half of the images": f"{report['half_accuracy']:.1%}",
        "accuracy of the text features": f"{report['text_accuracy']:.1%}",
        "calibration error": f"{report['calibration_error_after']:.3f} "
        f"({report['calibration_error_before']:.3f} without temperature)",
        "abstains below": ", ".join(f"{float(rate):.0%}: {least:.2f}" for rate, least in report["abstain"].items()),
    }
    for name, value in (rows | dict(facts)).items():
        _add(summary, name, value)
    console.print(summary)


def _unlabelled(report: Mapping[str, Any]) -> dict[str, str]:
    """The row about unlabelled images, if there were any."""
    if not report["n_unlabelled"]:
        return {}
    is_used = report["method"] == "gda-unlabelled"
    return {"unlabelled images": f"{report['n_unlabelled']}{'' if is_used else ' (no improvement, not used)'}"}


def _add(table: Table, *cells: object) -> None:
    """Add a row; class and file names are not markup."""
    table.add_row(*(Text(str(cell), overflow="fold") for cell in cells))
