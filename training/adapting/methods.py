"""Every method by the name that `--method` takes: its recipe, and how it is built."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import model_validator

from training.adapting.cocoop import CoCoOp, CoCoOpRecipe
from training.adapting.coop import CoOp, CoOpRecipe
from training.adapting.dept import DePT, DePTHost, DePTRecipe
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.maple import MaPLe, MaPLeRecipe
from training.adapting.method import AdaptingMethod
from training.adapting.prograd import ProGrad, ProGradRecipe
from training.adapting.promptsrc import PromptSRC, PromptSRCRecipe
from training.adapting.upt import UPT, UPTRecipe
from training.adapting.vpt import VPT, VPTRecipe
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe, validate_recipe


@dataclass(frozen=True)
class MethodEntry:
    """One method.

    Attributes:
        recipe: its keys and its paper's values.
        build: from base_model, class names and such a recipe to the method.
    """

    recipe: type[AdaptRecipe]
    build: Callable[[PromptedBackbone, Sequence[str], Any], AdaptingMethod]


HOSTS: Final[dict[str, tuple[type[AdaptRecipe], Callable[[PromptedBackbone, Sequence[str], Any], DePTHost]]]] = {
    "coop": (CoOpRecipe, CoOp),
    "ivlp": (IVLPRecipe, IVLP),
    "maple": (MaPLeRecipe, MaPLe),
}
"""What DePT can be put on, each with the values of its own recipe."""


class HostedDePTRecipe(DePTRecipe):
    """DePT's recipe with the host's own keys checked and written out; how the run steps is DePT's to say."""

    @model_validator(mode="before")
    @classmethod
    def _write_host_out(cls, values: dict[str, Any]) -> dict[str, Any]:
        host, given = values.get("host", cls.model_fields["host"].default), values.get("host_values", {})
        if host not in HOSTS or not isinstance(given, dict):
            return values  # the fields' own checks say what is wrong
        kind, _ = HOSTS[host]
        own = {name: field.default for name, field in kind.model_fields.items() if name not in AdaptRecipe.model_fields}
        if unknown := [key for key in given if key not in own]:
            raise ValueError(
                f"unknown recipe key {unknown[0]!r} in host_values; keys of the host {host}: {', '.join(own)}"
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
}
