"""The report of an ablation as a JSON object and as Markdown tables, and which of the paper's findings hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from training.ablation import findings
from training.ablation.findings import Finding
from training.ablation.run import AblationJob, Measured
from training.ablation.settings import Setting
from training.evaluation.caspl_tables import BUDGET, CASPL_PAPER, DEPTH_H, PHASE_DEPTHS
from training.evaluation.metrics import Spread, harmonic_mean, spread
from training.evaluation.report import markdown_table
from training.evaluation.rows import ZERO_SHOT, Row

MEASURES = ("base", "new", "h")


def rates(rows: Sequence[Row]) -> dict[str, Spread]:
    """Base, new and H over seeds; over several data sets, H is that of their mean base and mean new accuracy."""
    by_seed = rates_by_seed(rows).values()
    return {name: spread([each[name] for each in by_seed]) for name in MEASURES}


def rates_by_seed(rows: Sequence[Row]) -> dict[int | None, dict[str, float]]:
    """Base, new and H of each seed."""
    found = {}
    for seed in dict.fromkeys(row.seed for row in rows):
        own = [row for row in rows if row.seed == seed]
        pairs = [(row.base, row.new) for row in own if row.base is not None and row.new is not None]
        base, new = fmean(base for base, _ in pairs), fmean(new for _, new in pairs)
        found[seed] = {"base": base, "new": new, "h": harmonic_mean(base, new)}
    return found


class AblationReport:
    """Results of an ablation.

    Args:
        job: data, settings, method and recipe values.
        measured: rows of each setting; settings without rows are left out.
        facts: `student` and `teacher`, each with `arch`, `pretrained` and `fingerprint`.
    """

    def __init__(self, job: AblationJob, measured: Measured, facts: Mapping[str, Mapping[str, str]]) -> None:
        self.job, self.grid, self.facts = job, job.grid, facts
        self.measured = {setting: rows for setting, rows in measured.items() if rows}
        self._own = {
            setting: [row for row in rows if row.method == job.method] for setting, rows in self.measured.items()
        }
        self._rates = {setting: rates(rows) for setting, rows in self._own.items()}

    def h(self, setting: Setting) -> Spread | None:
        """H of a setting; None without rows."""
        return self._rates[setting]["h"] if setting in self._rates else None

    def depth_table(self) -> list[list[Spread | None]]:
        """H by depth of phase 1 (rows) and of phase 2 (columns)."""
        return [[self.h(self.grid.depth_setting(one, two)) for two in self.grid.depths] for one in self.grid.depths]

    def tokens_table(self, *, learnable: bool) -> list[list[Spread | None]]:
        """H by number of boosting prompts (rows) and of adapting prompts (columns)."""
        return [
            [self.h(self.grid.tokens_setting(one, two, learnable=learnable)) for two in self.grid.tokens]
            for one in self.grid.tokens
        ]

    def budget_rows(self) -> list[tuple[int, Setting, Mapping[str, Spread]]]:
        """Total number of prompts, setting, and base, new and H."""
        return [
            (total, setting, self._rates[setting])
            for total in self.grid.budgets
            for setting in self.grid.budget_settings(total)
            if setting in self._rates
        ]

    def base_models(self) -> dict[tuple[int, int], Mapping[str, Spread]]:
        """Zero-shot rates by number and depth of boosting prompts; (0, 0) is the plain backbone."""
        return {
            (setting.boosting_tokens, setting.boosting_depth): rates([row for row in rows if row.method == ZERO_SHOT])
            for setting, rows in self.measured.items()
        }

    def findings(self) -> list[Finding]:
        """The paper's findings that the measured settings can show; ± is over the seeds' gains."""
        h_by_seed: dict[int | None, dict[Setting, float]] = {}
        for setting, rows in self._own.items():
            for seed, found in rates_by_seed(rows).items():
                h_by_seed.setdefault(seed, {})[setting] = found["h"]
        h_of_mean = {setting: found["h"].mean for setting, found in self._rates.items()}
        comparisons = findings.comparisons(self.grid, self.job.studies)
        return [
            finding
            for comparison in comparisons
            if (finding := comparison.finding(h_of_mean, list(h_by_seed.values()))) is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """All rows, the rates of every setting, and the findings."""
        return {
            "method": self.job.method,
            "studies": list(self.job.studies),
            "datasets": [dataset.name for dataset in self.job.datasets],
            "seeds": list(self.job.seeds),
            "shots": self.job.shots,
            "overrides": list(self.job.overrides),
            "boost_overrides": list(self.job.boost_overrides),
            "grid": asdict(self.grid),
            **self.facts,
            "settings": [
                asdict(setting) | {name: asdict(value) for name, value in found.items()}
                for setting, found in self._rates.items()
            ],
            "base_models": [
                {"boosting_tokens": tokens, "boosting_depth": depth}
                | {name: value.mean for name, value in found.items()}
                for (tokens, depth), found in self.base_models().items()
            ],
            "findings": [asdict(finding) for finding in self.findings()],
            "rows": [asdict(setting) | asdict(row) for setting, rows in self.measured.items() for row in rows],
        }

    def to_markdown(self) -> str:
        """The tables of all studies, the findings, and the paper's numbers."""
        lines: list[str] = []
        if "depth" in self.job.studies:
            heads = [f"phase 2: {depth}" for depth in self.grid.depths]
            lines += [f"H by depth of phase 1 (rows) and phase 2, {self.grid.default_tokens} prompts per phase:", ""]
            rows = zip((f"phase 1: {depth}" for depth in self.grid.depths), self.depth_table(), strict=True)
            lines += [*markdown_table(["depth", *heads], [[name, *map(_text, cells)] for name, cells in rows]), ""]
        if "tokens" in self.job.studies:
            heads = [f"{tokens} adapting" for tokens in self.grid.tokens]
            lines += [f"H by number of prompts, depth {self.grid.deepest}:", ""]
            body = [
                [f"{tokens} boosting, {'learnable' if learnable else 'frozen'}", *map(_text, cells)]
                for learnable in (False, True)
                for tokens, cells in zip(self.grid.tokens, self.tokens_table(learnable=learnable), strict=True)
            ]
            lines += [*markdown_table(["phase 1", *heads], body), ""]
        if "budget" in self.job.studies:
            lines += [f"Base, new and H for the same total number of prompts, depth {self.grid.deepest}:", ""]
            body = [
                [str(total), _parts(setting), *(_text(found[name]) for name in MEASURES)]
                for total, setting, found in self.budget_rows()
            ]
            lines += [*markdown_table(["prompts", "as", "base", "new", "H"], body), ""]
        lines += ["The paper's findings:", ""]
        body = [[each.claim, each.paper, each.measured, "yes" if each.holds else "no"] for each in self.findings()]
        lines += markdown_table(["finding", "paper", "here", "holds"], body)
        return "\n".join(lines)


def published_markdown() -> str:
    """Tables 5 and 6 of the paper."""
    heads = ["depth", *(f"phase 2: {depth}" for depth in PHASE_DEPTHS)]
    depth = [[f"phase 1: {one}", *(f"{h:.2f}" for h in row)] for one, row in zip(PHASE_DEPTHS, DEPTH_H, strict=True)]
    budget = [
        [str(total), name, *(f"{rate:.2f}" for rate in found)]
        for total, pair in BUDGET.items()
        for name, found in zip(
            (f"{total} adapting", f"{total // 2} boosting + {total // 2} adapting"), pair, strict=True
        )
    ]
    lines = [f"{CASPL_PAPER}, tables 5 and 6: PromptSRC, ViT-B/16, mean over ten data sets.", ""]
    lines += [*markdown_table(heads, depth), "", *markdown_table(["prompts", "as", "base", "new", "H"], budget)]
    return "\n".join(lines)


def _parts(setting: Setting) -> str:
    adapting = f"{setting.adapting_tokens} adapting"
    return f"{setting.boosting_tokens} boosting + {adapting}" if setting.is_boosted else adapting


def _text(found: Spread | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.1f}" if found.sd is None else f"{found.mean:.1f} ± {found.sd:.1f}"
