"""One measurement's result: as an object for programs, a page for people, and a picture.

Every ratio stands with its spread, its definition and, where one was set, the bar it is held to, met or not.
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.interleaved import Ratio
from benchmarks.machine import foot, machine, today, versions
from training.demo.pages import fill_page

NUMBERS = re.compile(r"\[\n[\d\s.,eE+-]*\]")
"""A list of nothing but numbers, as indented JSON has it; no string can hold its line end."""


@dataclass(frozen=True)
class Bar:
    """What a ratio should be: at least, or at most, this."""

    sense: Literal[">=", "<="]
    limit: float

    def is_met(self, value: float) -> bool:
        """Whether a value reaches the bar."""
        return bool(value >= self.limit if self.sense == ">=" else value <= self.limit)

    def __str__(self) -> str:
        return f"{'≥' if self.sense == '>=' else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Measured:
    """A number with what it means.

    Attributes:
        name: key in the object.
        ratio: value and spread.
        meaning: what is divided by what, in words.
        bar: what it is held to; None where nothing was set.
    """

    name: str
    ratio: Ratio
    meaning: str
    bar: Bar | None = None


@dataclass(frozen=True)
class Table:
    """Rows under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        """As pages show it."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


@dataclass(frozen=True)
class Plot:
    """Curves, or bars where `x` are names."""

    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]]
    is_log: bool = False


def as_text(found: object) -> str:
    """JSON for people and version control: a line for everything but the numbers of a list, which share one."""
    text = json.dumps(found, indent=1)
    return NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), text) + "\n"


@dataclass
class Report:
    """Everything one command found.

    Attributes:
        name: `engine`, `serve`, `swap` or `peers`; files are called `bench-<name>`.
        settings: what was asked for.
        numbers: ratios and other single numbers.
        tables: by title.
        samples: raw values, whatever the command kept.
        notes: what a reader must know to read the numbers rightly.
        plots: by title, drawn one below the other.
        device: where it ran.
    """

    name: str
    settings: dict[str, Any]
    numbers: list[Measured] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    plots: dict[str, Plot] = field(default_factory=dict)
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=versions)
    command: str = field(default_factory=lambda: " ".join(["caspl bench", *_words_after_bench()]))

    def as_object(self) -> dict[str, Any]:
        """The whole result as JSON values."""
        whole = {
            "benchmark": self.name,
            "date": today(),
            "hardware": machine(self.device),
            "versions": self.versions,
            "command": self.command,
            "settings": self.settings,
            "ratios": {one.name: one.ratio.value for one in self.numbers},
            "spread": {one.name: asdict(one.ratio) for one in self.numbers},
            "meaning": {one.name: one.meaning for one in self.numbers},
            "bars": {
                one.name: {"bar": str(one.bar), "is_met": one.bar.is_met(one.ratio.value)}
                for one in self.numbers
                if one.bar
            },
            "tables": {
                title: [dict(zip(table.headings, row, strict=True)) for row in table.rows]
                for title, table in self.tables.items()
            },
            "notes": self.notes,
            "samples": self.samples,
        }
        return {name: _plain(value) for name, value in whole.items()}

    def numbers_table(self) -> Table:
        """Ratios, spreads and bars."""
        rows = [
            (
                f"`{one.name}`",
                one.meaning,
                f"**{one.ratio.value:.3g}**",
                f"{one.ratio.low:.3g} .. {one.ratio.high:.3g}" if one.ratio.n_rounds > 1 else "one value",
                str(one.bar) if one.bar else "",
                ("met" if one.bar.is_met(one.ratio.value) else "**missed**") if one.bar else "",
            )
            for one in self.numbers
        ]
        return Table(("name", "what", "median", "quartiles", "bar", ""), rows)

    def markdown(self) -> str:
        """The result as a section of a page: numbers, tables, notes, where it ran."""
        parts = [self.numbers_table().markdown()] if self.numbers else []
        parts += [f"{title}:\n\n{table.markdown()}" for title, table in self.tables.items()]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        parts.append(foot(self.command, self.versions, self.device))
        return "\n\n".join(parts)

    def write(self, folder: Path, page: Path | None = None) -> list[str]:
        """Write `bench-<name>.json`, `.md` and `.png`, and fill the page's table between its marks.

        Returns:
            What was written, and what could not be and why, one line each.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"bench-{self.name}"
        stem.with_suffix(".json").write_text(as_text(self.as_object()))
        stem.with_suffix(".md").write_text(self.markdown() + "\n")
        told = [f"wrote {stem}.json and {stem}.md"]
        if self.plots:
            told.append(self._draw(stem.with_suffix(".png")))
        if page is not None:
            fill_page(page, f"bench-{self.name}", self.markdown())
            told.append(f"filled {page}")
        return told

    def _draw(self, path: Path) -> str:
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415  an extra that numbers can do without
        except ModuleNotFoundError:
            return f'no {path.name}: the picture needs matplotlib: pip install "caspl-serve[bench]"'
        figure = Figure(figsize=(7, 3.5 * len(self.plots)), layout="constrained")
        for axes, (title, plot) in zip(
            figure.subplots(len(self.plots), squeeze=False).flat, self.plots.items(), strict=True
        ):
            for name, (xs, ys) in plot.series.items():
                if xs and isinstance(xs[0], str):
                    axes.barh(list(xs), list(ys), label=name)
                else:
                    axes.plot(xs, ys, marker=".", label=name)
            axes.set(title=title, xlabel=plot.x_label, ylabel=plot.y_label)
            if plot.is_log:
                axes.set_yscale("log")
            if len(plot.series) > 1:
                axes.legend()
        figure.savefig(path, dpi=110)
        return f"wrote {path}"


def _plain(value: Any) -> Any:  # noqa: ANN401  JSON values are what they are
    """JSON knows neither numpy's numbers nor "not a number": that is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _words_after_bench() -> list[str]:
    """The command's own words, whatever program it was started by; where its files went is nobody's concern."""
    words = sys.argv[1:]
    words = words[words.index("bench") + 1 :] if "bench" in words else words
    places = {index + step for index, word in enumerate(words) if word in {"--out", "--page"} for step in (0, 1)}
    return [
        Path(word).name if word.startswith("/") else word for index, word in enumerate(words) if index not in places
    ]
