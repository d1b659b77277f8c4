"""Summarizes rows over seeds: one method on one data set, with and without boosting prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from training.evaluation.metrics import Spread, harmonic_mean, spreads
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
    """One method on one data set over all seeds, with and without boosting prompts.

    Attributes:
        dataset, target, method, shots: as in `Row`.
        plain: statistics of each available measure without boosting.
        boosted: the same with boosting.
        published: published result without boosting, or None.
        published_boosted: published result with boosting, or None.
        notes: reasons for missing measures.
    """

    dataset: str
    target: str
    method: str
    shots: int
    plain: Mapping[str, Spread]
    boosted: Mapping[str, Spread]
    published: Published | None
    published_boosted: Published | None
    notes: tuple[str, ...]

    def change(self, measure: str) -> float | None:
        """Boosted minus plain mean, in points; None unless both exist."""
        if measure not in self.plain or measure not in self.boosted:
            return None
        return self.boosted[measure].mean - self.plain[measure].mean


@dataclass(frozen=True)
class Mean:
    """One method averaged over several data sets; H is computed from mean base and mean new accuracy, as published."""

    method: str
    shots: int
    n_datasets: int
    plain: Mapping[str, float]
    boosted: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """All results of one protocol on one backbone.

    Attributes:
        protocol: evaluation protocol.
        backbone: `arch`, `pretrained` and `fingerprint`.
        rows: all results.
    """

    protocol: Protocol
    backbone: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the protocol's measures."""
        return MEASURES[self.protocol]

    @property
    def seeds(self) -> list[int]:
        """Distinct seeds of the rows."""
        return sorted({row.seed for row in self.rows if row.seed is not None})

    @property
    def summaries(self) -> list[Summary]:
        """One summary per data set, target, method and number of shots, in row order."""
        keys = dict.fromkeys((row.dataset, row.target, row.method, row.shots) for row in self.rows)
        return [self._summary(*key) for key in keys]

    @property
    def means(self) -> list[Mean]:
        """One mean per method and number of shots over several data sets or targets; empty for a single one."""
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
            plain=spreads((row for row in rows if not row.boosted), self.measures),
            boosted=spreads((row for row in rows if row.boosted), self.measures),
            published=published(dataset, method, boosted=False) if self.protocol == "base-to-new" else None,
            published_boosted=published(dataset, method, boosted=True) if self.protocol == "base-to-new" else None,
            notes=tuple(dict.fromkeys(row.note for row in rows if row.note)),
        )

    def _mean(self, parts: Sequence[Mapping[str, Spread]]) -> dict[str, float]:
        means = {
            name: sum(part[name].mean for part in parts) / len(parts)
            for name in self.measures
            if all(name in part for part in parts)
        }
        return means | ({"h": harmonic_mean(means["base"], means["new"])} if "h" in means else {})
