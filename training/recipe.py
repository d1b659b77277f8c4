"""Recipes: every choice of a training run, as data.

A recipe is read from TOML; an unknown key is an error, every default can be printed, and the whole recipe travels in
the bundle's provenance. Where the CasPL paper (arXiv 2409.17805) is silent, the field's comment says so.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import RecipeError


class Recipe(BaseModel):
    """What every training run decides: how it steps, what it sees of an image, and from which seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with momentum 0.9, or AdamW")
    learning_rate: float = Field(default=0.005, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup_epochs: int = Field(default=1, ge=0, description="epochs at the constant warm-up rate")
    warmup_learning_rate: float = Field(default=1e-5, ge=0)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=8, ge=1)
    augmentation: Literal["crop-flip", "none"] = Field(
        default="crop-flip", description="random resized crop (bicubic) and flip; none sees each image as served"
    )
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="least area of a random crop")
    fixed_views: int = Field(
        default=0,
        ge=0,
        description="random views per image that the epochs go round, so that frozen models see each once; "
        "0 draws fresh ones every epoch, as the papers do",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the forward; auto is bfloat16 on CUDA and float32 elsewhere"
    )
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs, found {self.warmup_epochs} of {self.epochs}: nothing would be "
                "learned at the recipe's rate; set warmup_epochs=0 for so short a run"
            )
        return self

    def to_toml(self) -> str:
        """The recipe with every value written out and explained."""
        lines = []
        for name, field in type(self).model_fields.items():
            first, *others = tomli_w.dumps({name: getattr(self, name)}).strip().splitlines()
            lines += [f"{first}  # {field.description}" if field.description else first, *others]
        return "\n".join(lines) + "\n"


class BoostRecipe(Recipe):
    """Phase 1: boosting prompts distilled from a teacher on unlabelled images.

    Defaults follow the reference training of PromptSRC and PromptKD (SGD 0.9, weight decay 5e-4, cosine per epoch,
    one warm-up epoch at 1e-5, 20 epochs of batches of 8). Token count, depth, loss reduction and initialisation are
    not stated by the paper for phase 1; they are inferred and open to change here.
    """

    distillation: Literal["caspl", "promptkd"] = Field(
        default="caspl",
        description="caspl learns prompts in both towers; promptkd image prompts and a projector to the teacher's text "
        "features: other labels and phase 2 are then out of reach",
    )
    image_tokens: int = Field(
        default=8, ge=0, le=64, description="boosting tokens per layer in the image tower; inferred"
    )
    image_depth: int = Field(default=9, ge=1, description="layers with own image tokens, cut to the tower's; inferred")
    text_tokens: int = Field(
        default=8, ge=0, le=64, description="boosting tokens per layer in the text tower; inferred"
    )
    text_depth: int = Field(default=9, ge=1, description="layers with own text tokens, cut to the tower's; inferred")
    text_init: str = Field(
        default="a photo of a", description="words for text layer 0, used where their token count fits"
    )
    template: str = Field(default="{}.", description="student text behind the prompts")
    teacher_template: str = Field(default="a photo of a {}.", description="the teacher's hand-written prompt")
    temperature: float = Field(default=1.0, gt=0, description="tau of CasPL eq. 2")
    reduction: Literal["mean", "batchmean"] = Field(
        default="mean", description="KL over batch and classes (PromptKD) or over the batch; inferred"
    )
    loss_weight: float = Field(default=1000.0, gt=0, description="1000, or 200 for Aircraft, Flowers, DTD (PromptKD)")
    text_rate_factor: float = Field(
        default=1.0, ge=0, description="text prompts learn at this multiple of the rate; below 1 where classes collapse"
    )

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        has_text = self.text_tokens > 0 and self.distillation == "caspl"
        if self.image_tokens == 0 and not has_text:
            raise ValueError(
                "image_tokens and text_tokens are both 0: there is nothing to learn; give one of them tokens"
            )
        return self


class AdaptRecipe(Recipe):
    """Phase 2, what all methods share; each method's file adds its own keys and its paper's values.

    Source of the values: the methods' repositories (SGD 0.9, weight decay 5e-4, cosine, one warm-up epoch at 1e-5).
    """


R = TypeVar("R", bound=Recipe)


def read_recipe(kind: type[R], path: Path | None, overrides: Iterable[str] = ()) -> R:
    """Read a TOML recipe, then apply `key=value` overrides.

    Args:
        kind: which recipe: its keys, bounds and defaults.
        path: a TOML file, or None for the defaults.
        overrides: entries like `epochs=5`; values are TOML, bare words are strings.

    Raises:
        RecipeError: no such file, not TOML, an unknown key or a value out of range; names the key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"No recipe could be read from {path}: {error.strerror}."
            raise RecipeError(msg) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            msg = f"The recipe {path} is not TOML: {error}"
            raise RecipeError(msg) from error
    values |= dict(_parse_override(entry) for entry in overrides)
    return validate_recipe(kind, values)


def validate_recipe(kind: type[R], values: Mapping[str, Any]) -> R:
    """A recipe of plain values.

    Raises:
        RecipeError: an unknown key, a value out of range, or values that cannot go together; names the key.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(_explain(kind, error)) from error


def _parse_override(entry: str) -> tuple[str, Any]:
    key, sign, value = entry.partition("=")
    if not sign:
        msg = f"Expected key=value for a recipe override, found {entry!r}."
        raise RecipeError(msg)
    try:
        return key.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _explain(kind: type[Recipe], error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "value_error":
            parts.append(problem["msg"].removeprefix("Value error, "))
        elif problem["type"] == "extra_forbidden":
            parts.append(f"unknown recipe key {key!r}; known keys: {', '.join(kind.model_fields)}")
        else:
            parts.append(f"recipe key {key!r}: {problem['msg']}, found {problem['input']!r}")
    return "; ".join(parts)
