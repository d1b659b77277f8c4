"""The findings of the CasPL paper's ablations (arXiv 2409.17805, section 4.5), as differences of H between settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from training.ablation.settings import Grid, Setting
from training.evaluation.caspl_tables import BUDGET, DEPTH_H
from training.evaluation.metrics import spread

Pair = tuple[Setting, Setting]
"""The setting that the paper finds better, and the other one."""


@dataclass(frozen=True)
class Finding:
    """A finding of the paper, and whether it holds here.

    Attributes:
        claim: the finding.
        paper: the paper's number.
        measured: the same number here.
        holds: whether the measured number agrees in sign.
    """

    claim: str
    paper: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Comparison:
    """A claim that the first setting of each pair has the higher H.

    Attributes:
        claim: the claim.
        paper: the paper's number.
        pairs: settings to compare.
        always: the claim is about every pair, not their mean.
    """

    claim: str
    paper: str
    pairs: tuple[Pair, ...]
    always: bool = False

    def finding(
        self, h_of_mean: Mapping[Setting, float], h_by_seed: Sequence[Mapping[Setting, float]]
    ) -> Finding | None:
        """Compare measured H.

        Args:
            h_of_mean: H of each setting, mean over seeds.
            h_by_seed: the same for each seed.

        Returns:
            The finding with the mean gain ± its deviation over seeds, or None if a setting has not been measured.
        """
        gains = [_gains(self.pairs, h) for h in h_by_seed]
        complete = [fmean(found) for found in gains if found is not None]
        of_mean = _gains(self.pairs, h_of_mean)
        if of_mean is None or not complete:
            return None
        gain = spread(complete)
        text = f"{gain.mean:+.2f}" if gain.sd is None else f"{gain.mean:+.2f} ± {gain.sd:.2f}"
        if not self.always:
            return Finding(self.claim, self.paper, text, gain.mean > 0)
        n_better = sum(each > 0 for each in of_mean)
        text = f"in {n_better} of {len(of_mean)} cells, mean {text}"
        return Finding(self.claim, self.paper, text, n_better == len(of_mean))


def comparisons(grid: Grid, studies: Sequence[str]) -> list[Comparison]:
    """The comparisons of some studies."""
    found = []
    if "depth" in studies and len(grid.depths) > 1:
        low, high, cell = min(grid.depths), max(grid.depths), grid.depth_setting
        first = tuple((cell(high, other), cell(low, other)) for other in grid.depths)
        second = tuple((cell(other, high), cell(other, low)) for other in grid.depths)
        # From table 5. The text of section 4.5 attributes each of these two gains to the other phase.
        gains = fmean(b - a for a, b in zip(DEPTH_H[0], DEPTH_H[-1], strict=True)), fmean(r[-1] - r[0] for r in DEPTH_H)
        for phase, pairs, gain in ((1, first, gains[0]), (2, second, gains[1])):
            claim = f"deeper prompts in phase {phase} increase H: deepest against shallowest, mean"
            found.append(Comparison(claim, f"{gain:+.2f}", pairs))
    if "tokens" in studies:
        pairs = tuple(
            (grid.tokens_setting(one, two, learnable=False), grid.tokens_setting(one, two, learnable=True))
            for one in grid.tokens
            for two in grid.tokens
        )
        claim = "frozen boosting prompts are always better than learnable ones"
        found.append(Comparison(claim, "in every cell", pairs, always=True))
    if "budget" in studies:
        for total in grid.budgets:
            alone, cascade = grid.budget_settings(total)
            paper = f"{BUDGET[total][1][2] - BUDGET[total][0][2]:+.2f}" if total in BUDGET else "-"
            claim = f"half of {total} prompts as boosting prompts increases H"
            found.append(Comparison(claim, paper, ((cascade, alone),)))
    return found


def _gains(pairs: Sequence[Pair], h: Mapping[Setting, float]) -> list[float] | None:
    """First minus second setting of each pair; None if a setting is missing."""
    if any(setting not in h for pair in pairs for setting in pair):
        return None
    return [h[better] - h[other] for better, other in pairs]
