"""The recipes of the papers' tables: differences from a method's defaults, by protocol and data set.

Without boosting, sources are the methods' repositories. CoOp outside few-shot: `scripts/cocoop` (`vit_b16_ctxv1`, for
ImageNet `vit_b16_ep50_ctxv1`). MaPLe and PromptSRC: their cross-dataset and few-shot configurations. ProGrad: templates
of `trainers/prograd.py`, epochs of `configs/trainers/ProGrad` and lambda as in its README, made for ResNet-50. All are
based on Dassl, which drops the last, incomplete batch of an epoch.

Methods on boosting prompts: supplementary material of CasPL (arXiv 2409.17805). It states the lengths of the adapting
prompts but not their initial words: CoOp's and CoCoOp's are random, the others keep their repository's.
Templates: each data set's hand-written prompt.
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from prompt_store.manifest import DEFAULT_TEMPLATE
from training.data.catalog import CATALOG
from training.data.dataset import Dataset
from training.errors import RecipeError
from training.evaluation.rows import Protocol
from training.label_free.methods import ALL_RECIPES, LABEL_FREE
from training.recipe import PAPER_BOOST, BoostRecipe, FewShotRecipe, Settings, read_recipe

_LATE_AVERAGE: Final = frozenset({"stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"})
_ON_BOOSTING: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "coop": {"context_tokens": 8, "context_init": ""},
        "cocoop": {"context_tokens": 8, "context_init": ""},
        "maple": {"tokens": 8, "depth": 12},
        "promptsrc": {"image_tokens": 8, "text_tokens": 8, "image_depth": 12, "text_depth": 12},
    }
)
"""CasPL's adapting prompts, where they differ from those of the method alone."""
_LIGHT_DISTILLATION: Final = frozenset({"oxford_flowers", "fgvc_aircraft", "dtd"})
_SOFT_PROJECTION: Final = frozenset({"oxford_flowers", "dtd", "eurosat"})
_PROGRAD_TEMPLATES: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(CATALOG, DEFAULT_TEMPLATE)
    | {
        "oxford_pets": "a type of pet, a photo of a {}.",
        "oxford_flowers": "a type of flower, a photo of a {}.",
        "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
        "food101": "a type of food, a photo of {}.",
        "dtd": "a texture of {}.",
        "eurosat": "a centered satellite photo of {}.",
        "ucf101": "a photo of a person doing {}.",
    }
)


def adapt_recipe(
    method: str,
    dataset: Dataset,
    protocol: Protocol,
    *,
    shots: int,
    boosted: bool = False,
    overrides: Sequence[str] = (),
) -> Settings:
    """The recipe of one method for one table, without the seed.

    Args:
        method: a key of `ALL_RECIPES`.
        dataset: the training data set.
        protocol: the table's protocol.
        shots: training images per class.
        boosted: on boosting prompts, as CasPL trains the method; else as its own paper does.
        overrides: `key=value` for all methods with that key, `method.key=value` for one.

    Raises:
        RecipeError: a value is out of range.
    """
    kind = ALL_RECIPES[method]
    if issubclass(kind, FewShotRecipe):
        return kind()
    values: dict[str, Any] = {"template": dataset.template} if "template" in kind.model_fields else {}
    if "drop_last" in kind.model_fields:
        values["drop_last"] = True
    values |= {} if method in LABEL_FREE else _differences(method, dataset.name, protocol, shots)
    if boosted:
        values |= _ON_BOOSTING.get(method, {})
        if method == "coop" and protocol != "few-shot":
            values["epochs"] = 50
    entries = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return read_recipe(kind, None, [*entries, *_of_method(method, overrides)])


def boost_recipe(dataset: Dataset, overrides: Sequence[str] = ()) -> BoostRecipe:
    """The phase 1 recipe for a data set: CasPL's, with PromptKD's loss weight, and the hand-written prompt.

    Raises:
        RecipeError: an unknown key or a value out of range.
    """
    values: dict[str, Any] = {**PAPER_BOOST, "teacher_template": dataset.template}
    if dataset.name in _LIGHT_DISTILLATION:
        values["loss_weight"] = 200.0
    entries = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return read_recipe(BoostRecipe, None, [*entries, *overrides])


def check_overrides(methods: Sequence[str], overrides: Sequence[str]) -> None:
    """Reject overrides that apply to none of the selected methods.

    Raises:
        RecipeError: not `key=value`, an unknown method or key, or `seed`, which is set per run.
    """
    known = {method: ALL_RECIPES[method].model_fields.keys() - {"seed"} for method in methods}
    for entry in overrides:
        method, key = _split_key(entry)
        if key == "seed":
            raise RecipeError("Set seeds with --seeds, not with --set.")
        if method is not None and method not in known:
            msg = f"{entry!r} names none of the selected methods ({', '.join(methods) or 'none'})."
            raise RecipeError(msg)
        keys = known[method] if method is not None else frozenset().union(*known.values())
        if key not in keys:
            msg = (
                f"No selected method has the recipe key of {entry!r}; known keys: {', '.join(sorted(keys)) or 'none'}."
            )
            raise RecipeError(msg)


def _differences(method: str, dataset: str, protocol: Protocol, shots: int) -> dict[str, Any]:
    """Differences from the method's defaults, which are those of base-to-new with 16 shots."""
    across = protocol in {"cross-dataset", "domain-generalisation"}
    match method:
        case "coop":
            return _coop(dataset, protocol, shots)
        case "maple" if across:
            return {"learning_rate": 0.0026, "epochs": 2, "depth": 3}
        case "promptsrc" if across:
            return {"image_depth": 3, "text_depth": 3, "gpa_mean": 6.0, "gpa_std": 10.0}
        case "promptsrc" if protocol == "few-shot":
            mean, std = (45.0, 5.0) if dataset in _LATE_AVERAGE else (30.0, 30.0)
            return {"epochs": 50, "gpa_mean": mean, "gpa_std": std}
        case "prograd":
            return _prograd(dataset, protocol, shots)
        case _:
            return {}


def _coop(dataset: str, protocol: Protocol, shots: int) -> dict[str, Any]:
    """CoOp's few-shot tables use 16 random tokens; CoCoOp's tables initialize CoOp with four words."""
    words: dict[str, Any] = {} if protocol == "few-shot" else {"context_init": "a photo of a"}
    if shots == 1 or dataset == "imagenet":
        return words | {"epochs": 50}
    return words | ({"epochs": 100} if shots <= 4 else {})


def _prograd(dataset: str, protocol: Protocol, shots: int) -> dict[str, Any]:
    """ProGrad's words and schedule; base-to-new is 100 epochs, the other tables depend on shots as CoOp's do."""
    by_shots = 50 if shots == 1 else 100 if shots <= 4 else 200
    values: dict[str, Any] = {"epochs": 100 if protocol == "base-to-new" else by_shots}
    if dataset == "imagenet":
        values["epochs"] = 50
    if protocol == "few-shot" and dataset in _SOFT_PROJECTION and shots >= 8:
        values["projection"] = 0.8
    if template := _PROGRAD_TEMPLATES.get(dataset):
        # The repository's context has as many tokens as the text has words. A comma is a token of its own, so the last
        # word does not fit and stays behind the context.
        words = template.removesuffix(" {}.").split(" ")
        n_outside = template.count(",")
        inside, outside = words[: len(words) - n_outside], words[len(words) - n_outside :]
        context_template = " ".join([*outside, "{}."])
        values |= {"template": template, "context_init": " ".join(inside), "context_template": context_template}
    return values


def _of_method(method: str, overrides: Sequence[str]) -> list[str]:
    """The overrides for one method, without the method prefix."""
    fields = ALL_RECIPES[method].model_fields
    entries = []
    for entry in overrides:
        named, key = _split_key(entry)
        if key in fields and named in {None, method}:
            entries.append(entry if named is None else entry.split(".", 1)[1])
    return entries


def _split_key(entry: str) -> tuple[str | None, str]:
    """`coop.epochs=5` is (`coop`, `epochs`)."""
    key, sign, _ = entry.partition("=")
    if not sign:
        msg = f"{entry!r} is not a recipe override; use key=value or method.key=value."
        raise RecipeError(msg)
    key = key.strip()
    method, dot, rest = key.partition(".")
    return (method.strip(), rest.strip()) if dot else (None, key)
