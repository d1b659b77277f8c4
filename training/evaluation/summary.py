"""Rows over seeds become summaries: one method on one data set, without and with boosting prompts side by side.

Knows rows and published numbers. Does not know how they are shown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from training.evaluation.metrics import Spread, harmonic_mean, spread
from training.evaluation.published import Published, published
from training.evaluation.rows import Protocol, Row

MEASURES: Final[Mapping[Protocol, tuple[str, ...]]] = {
    "base-to-new": ("base", "new", "h"),
    "few-shot": ("accuracy",),
    "cross-dataset": ("accuracy",),
    "domain-generalisation": ("accuracy",),
}


@dataclass(frozen=True)
class Summary:
    """One method on one data set over all seeds, without and with boosting prompts side by side.

    Attributes:
        dataset, target, method, shots: as in `Row`.
        plain: spread of each measure without boosting; a measure that is missing has none.
        boosted: the same with boosting.
        published: what was printed for it without boosting, or None.
        notes: why measures are missing.
    """

    dataset: str
    target: str
    method: str
    shots: int
    plain: Mapping[str, Spread]
    boosted: Mapping[str, Spread]
    published: Published | None
    notes: tuple[str, ...]

    def change(self, measure: str) -> float | None:
        """Boosted minus plain mean, in points; None unless both were measured."""
        if measure not in self.plain or measure not in self.boosted:
            return None
        return self.boosted[measure].mean - self.plain[measure].mean


@dataclass(frozen=True)
class Mean:
    """One method over several data sets: means of their means; H is that of the mean base and new rates, as printed."""

    method: str
    shots: int
    n_datasets: int
    plain: Mapping[str, float]
    boosted: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """Everything that was measured under one protocol on one backbone.

    Attributes:
        protocol: how.
        backbone: `arch`, `pretrained` and `fingerprint`.
        rows: every measurement.
    """

    protocol: Protocol
    backbone: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the rates that this protocol has."""
        return MEASURES[self.protocol]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the rows, without repetition."""
        return sorted({row.seed for row in self.rows if row.seed is not None})

    @property
    def summaries(self) -> list[Summary]:
        """One per data set, target, method and number of shots, in the order of the rows."""
        keys = dict.fromkeys((row.dataset, row.target, row.method, row.shots) for row in self.rows)
        return [self._summary(*key) for key in keys]

    @property
    def means(self) -> list[Mean]:
        """One per method and number of shots where there are several data sets; across data sets, over the targets."""
        summaries = [
            summary
            for summary in self.summaries
            if self.protocol in {"base-to-new", "few-shot"} or summary.target != summary.dataset
        ]
        keys = dict.fromkeys((summary.method, summary.shots) for summary in summaries)
        groups = {key: [each for each in summaries if (each.method, each.shots) == key] for key in keys}
        return [
            Mean(
                method,
                shots,
                len(group),
                self._mean([summary.plain for summary in group]),
                self._mean([summary.boosted for summary in group]),
            )
            for (method, shots), group in groups.items()
            if len(group) > 1
        ]

    def _summary(self, dataset: str, target: str, method: str, shots: int) -> Summary:
        rows = [
            row
            for row in self.rows
            if (row.dataset, row.target, row.method, row.shots) == (dataset, target, method, shots)
        ]
        return Summary(
            dataset,
            target,
            method,
            shots,
            plain=self._spreads(row for row in rows if not row.boosted),
            boosted=self._spreads(row for row in rows if row.boosted),
            published=published(dataset, method, boosted=False) if self.protocol == "base-to-new" else None,
            notes=tuple(dict.fromkeys(row.note for row in rows if row.note)),
        )

    def _spreads(self, rows: Iterable[Row]) -> dict[str, Spread]:
        listed = list(rows)
        values = {name: [getattr(row, name) for row in listed] for name in self.measures}
        return {name: spread(found) for name, found in values.items() if found and None not in found}

    def _mean(self, parts: Sequence[Mapping[str, Spread]]) -> dict[str, float]:
        means = {
            name: sum(part[name].mean for part in parts) / len(parts)
            for name in self.measures
            if all(name in part for part in parts)
        }
        return means | ({"h": harmonic_mean(means["base"], means["new"])} if "h" in means else {})
