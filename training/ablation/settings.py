"""The settings that an ablation compares, as recipe values of both phases.

    depth     every depth of phase 1 with every depth of phase 2                                    table 5
    tokens    every number of boosting with every number of adapting prompts, frozen and learnable  figure 4
    budget    n adapting prompts against n/2 boosting and n/2 adapting prompts                      table 6

Source: CasPL (arXiv 2409.17805), section 4.5. Numbers of prompts are per layer, in each tower; a depth beyond a tower
is that tower's depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from training.adapting.methods import METHODS
from training.errors import RecipeError

STUDIES: Final = ("depth", "tokens", "budget")
ABLATED_METHODS: Final = tuple(name for name, entry in METHODS.items() if "boosting" in entry.recipe.model_fields)
"""Methods with a number of tokens, a depth, and boosting prompts that can be trained further."""


@dataclass(frozen=True)
class Setting:
    """Prompts of both phases.

    Attributes:
        boosting_tokens: boosting prompts per layer; 0 for the plain backbone.
        boosting_depth: layers with boosting prompts; 0 for the plain backbone.
        adapting_tokens: adapting prompts per layer.
        adapting_depth: layers with adapting prompts.
        learnable: phase 2 trains the boosting prompts, too.
    """

    boosting_tokens: int
    boosting_depth: int
    adapting_tokens: int
    adapting_depth: int
    learnable: bool = False

    @property
    def is_boosted(self) -> bool:
        """Whether there are boosting prompts."""
        return self.boosting_tokens > 0

    @property
    def total_tokens(self) -> int:
        """Prompts of both phases per layer."""
        return self.boosting_tokens + self.adapting_tokens

    def __str__(self) -> str:
        """One line for progress and listings."""
        adapting = f"{self.adapting_tokens} adapting prompts, depth {self.adapting_depth}"
        if not self.is_boosted:
            return adapting
        state = "learnable" if self.learnable else "frozen"
        return f"{self.boosting_tokens} {state} boosting prompts, depth {self.boosting_depth}; {adapting}"

    def boost_overrides(self) -> list[str]:
        """Values of the boosting recipe, as `key=value`."""
        tokens, depth = self.boosting_tokens, self.boosting_depth
        return [f"{tower}_{name}={value}" for tower in ("image", "text") for name, value in _named(tokens, depth)]

    def adapt_overrides(self, method: str) -> list[str]:
        """Values of a method's recipe, as `key=value`.

        Args:
            method: one of `ABLATED_METHODS`.
        """
        keys = METHODS[method].recipe.model_fields
        values = [
            f"{key}={value}"
            for name, value in _named(self.adapting_tokens, self.adapting_depth)
            for key in keys
            if key == name or key.endswith(f"_{name}")
        ]
        return [*values, f"boosting={'learnable' if self.learnable else 'frozen'}"]


@dataclass(frozen=True)
class Grid:
    """The values that the studies compare.

    Attributes:
        depths: depths of each phase, for `depth`; the other studies use the largest.
        tokens: numbers of prompts of each phase, for `tokens`.
        default_tokens: number of prompts of each phase, for `depth`.
        budgets: total numbers of prompts, for `budget`; even.

    Raises:
        RecipeError: no values, a value below 1, or an odd budget.
    """

    depths: tuple[int, ...]
    tokens: tuple[int, ...] = (4, 8, 16)
    default_tokens: int = 8
    budgets: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("depths", "tokens", "budgets"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                msg = f"{name} must be integers of at least 1, found {', '.join(map(str, values)) or 'none'}."
                raise RecipeError(msg)
        if self.default_tokens < 1:
            msg = f"The number of prompts must be at least 1, found {self.default_tokens}."
            raise RecipeError(msg)
        if odd := [total for total in self.budgets if total % 2]:
            msg = f"A budget is split into halves of boosting and adapting prompts; {odd[0]} is odd."
            raise RecipeError(msg)

    def check_depths(self, n_layers: int, arch: str) -> None:
        """Check that no depth exceeds the image tower.

        Raises:
            RecipeError: one does.
        """
        if self.deepest > n_layers:
            msg = (
                f"A depth of {self.deepest} exceeds the {n_layers} layers of {arch}'s image tower; use depths from 1 "
                f"to {n_layers}."
            )
            raise RecipeError(msg)

    @property
    def deepest(self) -> int:
        """The depth of the studies that do not vary it."""
        return max(self.depths)

    def depth_setting(self, boosting: int, adapting: int) -> Setting:
        """A cell of the study `depth`."""
        return Setting(self.default_tokens, boosting, self.default_tokens, adapting)

    def tokens_setting(self, boosting: int, adapting: int, *, learnable: bool) -> Setting:
        """A cell of the study `tokens`."""
        return Setting(boosting, self.deepest, adapting, self.deepest, learnable)

    def budget_settings(self, total: int) -> tuple[Setting, Setting]:
        """A budget as adapting prompts alone, and as boosting and adapting prompts."""
        half = total // 2
        return Setting(0, 0, total, self.deepest), Setting(half, self.deepest, half, self.deepest)

    def settings(self, studies: Sequence[str]) -> list[Setting]:
        """All settings of some studies, each once; those with the same boosting prompts follow each other."""
        found: list[Setting] = []
        if "depth" in studies:
            found += [self.depth_setting(one, two) for one in self.depths for two in self.depths]
        if "tokens" in studies:
            found += [
                self.tokens_setting(one, two, learnable=learnable)
                for one in self.tokens
                for two in self.tokens
                for learnable in (False, True)
            ]
        if "budget" in studies:
            found += [setting for total in self.budgets for setting in self.budget_settings(total)]
        return sorted(dict.fromkeys(found), key=lambda each: (each.boosting_tokens, each.boosting_depth))


def quarter_depths(n_layers: int) -> tuple[int, ...]:
    """One layer, and each quarter of a tower's layers: 1, 3, 6, 9, 12 of twelve, as in table 5."""
    return tuple(dict.fromkeys([1, *(max(1, round(n_layers * part / 4)) for part in (1, 2, 3, 4))]))


def _named(tokens: int, depth: int) -> list[tuple[str, int]]:
    return [("tokens", tokens), ("depth", depth)]
