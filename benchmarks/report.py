"""Results of a benchmark: JSON for programs, and Markdown that is generated from the JSON alone."""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.machine import commit, in_words, machine, today, versions
from benchmarks.ratios import Spread

NUMBERS = re.compile(r"\[\n[\d\s.,eE+-]*\]")
"""A list of numbers in indented JSON."""


@dataclass(frozen=True)
class Target:
    """A limit that was set before the measurement."""

    sense: Literal[">=", "<="]
    limit: float

    def is_met(self, value: float) -> bool:
        """Whether a value is on the right side of the limit."""
        return bool(value >= self.limit if self.sense == ">=" else value <= self.limit)


@dataclass(frozen=True)
class Table:
    """Rows under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


@dataclass
class Report:
    """Everything that one command measured.

    Attributes:
        name: names the files `<name>.json` and `<name>.md`.
        settings: options of the command.
        numbers: value, quartiles, meaning and target by name; see `add`.
        tables: further numbers, by title.
        notes: limitations, for the reader.
        samples: raw values.
        device: torch device.
    """

    name: str
    settings: dict[str, Any]
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def add(self, name: str, value: Spread | float, meaning: str, target: Target | None = None) -> None:
        """Add a number.

        Args:
            name: its key.
            value: with quartiles, or alone.
            meaning: definition with its unit, or numerator / denominator.
            target: its limit, if one was set.
        """
        spread = value if isinstance(value, Spread) else Spread.of([float(value)])
        self.numbers[name] = asdict(spread) | {"meaning": meaning}
        if target is not None:
            self.numbers[name] |= {"target": f"{target.sense} {target.limit:g}", "met": target.is_met(spread.value)}

    def as_object(self) -> dict[str, Any]:
        """The result as JSON values."""
        whole = asdict(self) | {
            "date": today(),
            "commit": commit(),
            "hardware": machine(self.device),
            "versions": versions(),
            "command": command_line(),
        }
        plain: dict[str, Any] = _plain(whole)
        return plain

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the JSON and the Markdown file."""
        result = self.as_object()
        write_result(result, folder)
        return result


def write_result(result: Mapping[str, Any], folder: Path) -> None:
    """Write a result's JSON and Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    text = NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), json.dumps(result, indent=1))
    (folder / f"{result['name']}.json").write_text(text + "\n", encoding="utf-8")
    (folder / f"{result['name']}.md").write_text(markdown(result) + "\n", encoding="utf-8")


def markdown(result: Mapping[str, Any]) -> str:
    """A result's page."""
    rows = []
    for name, number in result["numbers"].items():
        value, *quartiles = (_short(number[key]) for key in ("value", "low", "high"))
        spread = " .. ".join(quartiles) if number["n"] > 1 else ""
        met = {True: "met", False: "**missed**", None: ""}[number.get("met")]
        rows.append((f"`{name}`", number["meaning"], f"**{value}**", spread, number.get("target", ""), met))
    parts = [Table(("name", "meaning", "median", "quartiles", "target", ""), rows).markdown()] if rows else []
    for title, table in result["tables"].items():
        parts += [f"{title}:", Table(table["headings"], table["rows"]).markdown()]
    if result["notes"]:
        parts.append("\n".join(f"- {note}" for note in result["notes"]))
    return "\n\n".join(
        [f"# {result['name']}", *parts, foot(result), f"Raw values: [{result['name']}.json]({result['name']}.json)."]
    )


def foot(result: Mapping[str, Any]) -> str:
    """Date, commit, hardware, versions and command of a result."""
    software = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    when = f"{result['date']}, commit {result['commit']}"
    return f"{when}; {in_words(result['hardware'])}; {software}. Command: `{result['command']}`."


def command_line() -> str:
    """The command that runs, without its output folder."""
    words = sys.argv[1:]
    words = ["caspl", "bench", *words[words.index("bench") + 1 :]] if "bench" in words else ["python", *sys.argv]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return " ".join(Path(word).name if word.startswith("/") else word for word in words)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plain(value: Any) -> Any:  # noqa: ANN401  JSON values of any kind
    """Replace numpy's numbers, and NaN by None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
