"""The methods by `--method` name: recipe class and constructor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import model_validator

from prompted_clip.few_shot import FEW_SHOT_METHODS
from training.adapting.cocoop import CoCoOp, CoCoOpRecipe
from training.adapting.coop import CoOp, CoOpRecipe
from training.adapting.dept import DePT, DePTHost, DePTRecipe
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.maple import MaPLe, MaPLeRecipe
from training.adapting.method import AdaptingMethod
from training.adapting.prograd import ProGrad, ProGradRecipe
from training.adapting.promptsrc import PromptSRC, PromptSRCRecipe
from training.adapting.tcp import TCP, TCPRecipe
from training.adapting.upt import UPT, UPTRecipe
from training.adapting.vpt import VPT, VPTRecipe
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe, FewShotRecipe, validate_recipe


@dataclass(frozen=True)
class MethodEntry:
    """One method.

    Attributes:
        recipe: recipe class, with the paper's values as defaults.
        build: constructs the method from base model, class names and recipe.
    """

    recipe: type[AdaptRecipe]
    build: Callable[[PromptedBackbone, Sequence[str], Any], AdaptingMethod]


HOSTS: Final[dict[str, tuple[type[AdaptRecipe], Callable[[PromptedBackbone, Sequence[str], Any], DePTHost]]]] = {
    "coop": (CoOpRecipe, CoOp),
    "ivlp": (IVLPRecipe, IVLP),
    "maple": (MaPLeRecipe, MaPLe),
}
"""Host methods of DePT: recipe class and constructor."""


class HostedDePTRecipe(DePTRecipe):
    """DePT's recipe with validated and completed host values; schedule and optimizer come from DePT's own keys."""

    @model_validator(mode="before")
    @classmethod
    def _complete_host_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        host, given = values.get("host", cls.model_fields["host"].default), values.get("host_values", {})
        if host not in HOSTS or not isinstance(given, dict):
            return values  # field validation reports the error
        kind, _ = HOSTS[host]
        own = {name: field.default for name, field in kind.model_fields.items() if name not in AdaptRecipe.model_fields}
        if unknown := [key for key in given if key not in own]:
            raise ValueError(
                f"unknown recipe key {unknown[0]!r} in host_values; known keys of {host}: {', '.join(own)}"
            )
        checked = validate_recipe(kind, own | given)
        return values | {"host_values": {name: getattr(checked, name) for name in own}}


def _build_dept(base_model: PromptedBackbone, class_names: Sequence[str], recipe: DePTRecipe) -> DePT:
    host_recipe, build_host = HOSTS[recipe.host]
    values = validate_recipe(host_recipe, {"seed": recipe.seed} | recipe.host_values)
    return DePT(base_model, class_names, recipe, build_host(base_model, class_names, values))


METHODS: Final[dict[str, MethodEntry]] = {
    "coop": MethodEntry(CoOpRecipe, CoOp),
    "cocoop": MethodEntry(CoCoOpRecipe, CoCoOp),
    "vpt": MethodEntry(VPTRecipe, VPT),
    "ivlp": MethodEntry(IVLPRecipe, IVLP),
    "maple": MethodEntry(MaPLeRecipe, MaPLe),
    "promptsrc": MethodEntry(PromptSRCRecipe, PromptSRC),
    "prograd": MethodEntry(ProGradRecipe, ProGrad),
    "dept": MethodEntry(HostedDePTRecipe, _build_dept),
    "upt": MethodEntry(UPTRecipe, UPT),
    "tcp": MethodEntry(TCPRecipe, TCP),
}

RECIPES: Final[dict[str, type[AdaptRecipe] | type[FewShotRecipe]]] = {
    **{name: entry.recipe for name, entry in METHODS.items()},
    **dict.fromkeys(FEW_SHOT_METHODS, FewShotRecipe),
}
"""Recipe classes of all methods, those of few-shot heads included."""
