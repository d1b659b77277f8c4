"""Recipes: all settings of a training run, read from TOML and stored in the bundle's provenance.

Unknown keys are errors. A description marked "inferred" is a value that the CasPL paper (arXiv 2409.17805) or the
method's own paper does not state.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prompt_store.validation import plain_message
from prompted_clip.errors import did_you_mean
from training.errors import RecipeError


class Settings(BaseModel):
    """Keys and values that a TOML file can set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_toml(self) -> str:
        """All keys with their values, as TOML, with descriptions as comments."""
        import tomli_w  # noqa: PLC0415  `caspl fit` and the demo run without the extra that has it

        lines = []
        for name, field in type(self).model_fields.items():
            first, *others = tomli_w.dumps({name: getattr(self, name)}).strip().splitlines()
            lines += [f"{first}  # {field.description}" if field.description else first, *others]
        return "\n".join(lines) + "\n"


class FewShotRecipe(Settings):
    """A few-shot head in closed form: nothing is trained, and the seed only draws the shots."""

    seed: int = Field(default=1, ge=0, description="random seed of the sample")


class Recipe(Settings):
    """Settings that all training runs share: optimizer, schedule, augmentation, precision and seed."""

    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with momentum 0.9, or AdamW")
    learning_rate: float = Field(default=0.005, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup_epochs: int = Field(default=1, ge=0, description="epochs at the constant warm-up learning rate")
    warmup_learning_rate: float = Field(default=1e-5, ge=0)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=8, ge=1)
    drop_last: bool = Field(
        default=False,
        description="leave out the last images of an epoch's order if they do not fill a batch, as Dassl does",
    )
    augmentation: Literal["crop-flip", "strong", "none"] = Field(
        default="crop-flip",
        description="random resized crop (bicubic) and flip; strong: with random changes of colour and geometry, too; "
        "none: preprocess as in serving",
    )
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="minimum area of a random crop, as a fraction")
    fixed_views: int = Field(
        default=0,
        ge=0,
        description="random views per image, cycled through by epoch, so that frozen models run once per view; "
        "0 draws new views every epoch, as in the papers",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="dtype of the forward pass; auto is bfloat16 on CUDA, float32 elsewhere"
    )
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs, found {self.warmup_epochs} of {self.epochs}; set "
                "warmup_epochs=0 for such a short run"
            )
        return self


class BoostRecipe(Recipe):
    """Phase 1: distil boosting prompts from a teacher on unlabelled images.

    Epochs are CasPL's; batch size and loss weight follow PromptKD. CasPL's supplementary material states 8 tokens,
    depth 12, random initialisation and SGD at 0.0025, but no loss reduction; `caspl reproduce` uses these
    (`training.evaluation.paper_recipes`). Optimizer, rates, crops and text prompts here were chosen on the demo world:
    SGD made its student worse, often by collapsing all classes to one text feature (see docs/boosting.md).
    """

    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="AdamW, or SGD with momentum 0.9")
    learning_rate: float = Field(
        default=0.0004, gt=0, description="the default is for ViT-B/16 and is scaled to other backbones"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_epochs: int = Field(default=0, ge=0, description="epochs at the constant warm-up learning rate")
    crop_scale_min: float = Field(default=0.5, gt=0, le=1, description="minimum area of a random crop, as a fraction")
    distillation: Literal["caspl", "promptkd"] = Field(
        default="caspl",
        description="caspl: prompts in both towers; promptkd: image prompts and a projector to the teacher's text "
        "features, which supports neither other labels nor phase 2",
    )
    image_tokens: int = Field(default=8, ge=0, le=64, description="boosting tokens per layer in the image tower")
    image_depth: int = Field(
        default=9, ge=1, description="layers with their own image tokens, at most the tower's; 12 in the paper"
    )
    text_tokens: int = Field(
        default=4, ge=0, le=64, description="boosting tokens per layer in the text tower; 8 in the paper"
    )
    text_depth: int = Field(
        default=9, ge=1, description="layers with their own text tokens, at most the tower's; 12 in the paper"
    )
    text_init: str = Field(
        default="a photo of a",
        description="words that the first text tokens start as, in every layer; further tokens start at random",
    )
    template: str = Field(default="{}.", description="student text after the prompts")
    teacher_template: str = Field(default="a photo of a {}.", description="the teacher's hand-written prompt template")
    teacher_weights: Literal["mean", "entropy", "agreement"] = Field(
        default="mean",
        description="weights of several teachers for an image: equal; by confidence, exp(-entropy); or by agreement "
        "with the mean of all teachers",
    )
    temperature: float = Field(
        default=1.0, gt=0, description="tau of CasPL eq. 2; small backbones have another default, see docs/boosting.md"
    )
    reduction: Literal["mean", "batchmean"] = Field(
        default="mean", description="average the KL over batch and classes (PromptKD), or over the batch; inferred"
    )
    loss_weight: float = Field(default=1000.0, gt=0, description="1000, or 200 for Aircraft, Flowers, DTD (PromptKD)")
    text_rate_factor: float = Field(
        default=0.05, ge=0, description="learning-rate multiplier of the text prompts; near 1, classes may collapse"
    )

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        has_text = self.text_tokens > 0 and self.distillation == "caspl"
        if self.image_tokens == 0 and not has_text:
            raise ValueError("image_tokens and text_tokens are both 0, so there is nothing to train; raise one of them")
        return self


class AdaptRecipe(Recipe):
    """Phase 2: settings shared by all methods; each method adds its own keys and its paper's values.

    Source: the methods' repositories (SGD 0.9, weight decay 5e-4, cosine, one warm-up epoch at 1e-5).
    """


PAPER_BOOST: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "optimizer": "sgd",
        "drop_last": True,
        "learning_rate": 0.0025,
        "weight_decay": 5e-4,
        "warmup_epochs": 1,
        "crop_scale_min": 0.08,
        "image_depth": 12,
        "text_tokens": 8,
        "text_depth": 12,
        "text_init": "",
        "text_rate_factor": 1.0,
        "temperature": 1.0,
        "augmentation": "crop-flip",
    }
)
"""CasPL's phase 1, where defaults differ from it.

Source: supplementary material of CasPL. It states no batch size, loss weight, crops, schedule or weight decay: these
are PromptKD's.
"""
SMALL_BOOST: Final[Mapping[str, Any]] = MappingProxyType({"temperature": 4.0, "augmentation": "none"})
"""Defaults of phase 1 for small backbones, chosen on the demo world (`training.demo.boost_variants`)."""
PAPER: Final = Path("paper")
"""The name of `PAPER_BOOST` in place of a recipe file; a file of this name is `./paper`."""

R = TypeVar("R", bound=Settings)


def read_boost_recipe(source: Path | None, overrides: Iterable[str] = ()) -> BoostRecipe:
    """Read phase 1's recipe: a TOML file, the paper's values for `PAPER`, or the defaults.

    Raises:
        RecipeError: see `read_recipe`.
    """
    if source is None or str(source) != str(PAPER):
        return read_recipe(BoostRecipe, source, overrides)
    return validate_recipe(BoostRecipe, dict(PAPER_BOOST) | dict(map(_parse_override, overrides)))


def read_recipe(kind: type[R], path: Path | None, overrides: Iterable[str] = (), *, table: str | None = None) -> R:
    """Read a TOML recipe and apply `key=value` overrides.

    Args:
        kind: recipe class, which defines keys, bounds and defaults.
        path: a TOML file, or None for the defaults.
        overrides: entries like `epochs=5`; values are TOML, bare words are strings.
        table: the table to use of a file that consists of tables, one per method.

    Raises:
        RecipeError: missing file, invalid TOML, unknown key or value out of range; names the key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"Cannot read the recipe {path}: {error.strerror}."
            raise RecipeError(msg) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            msg = f"The recipe {path} is not valid TOML: {error}"
            raise RecipeError(msg) from error
        if values and all(isinstance(value, dict) for value in values.values()):
            if table not in values:
                wanted = f"[{table}]" if table else "keys without a table, as a boosting recipe has none"
                msg = f"The recipe {path} has only the tables {', '.join(values)}; expected {wanted}."
                raise RecipeError(msg)
            values = values[table]
    values |= dict(_parse_override(entry) for entry in overrides)
    return validate_recipe(kind, values)


def validate_recipe(kind: type[R], values: Mapping[str, Any]) -> R:
    """Build a recipe from plain values.

    Raises:
        RecipeError: unknown key, value out of range, or conflicting values; names the key.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(_explain(kind, error)) from error


def _parse_override(entry: str) -> tuple[str, Any]:
    key, sign, value = entry.partition("=")
    if not sign:
        msg = f"A recipe override must be key=value, found {entry!r}."
        raise RecipeError(msg)
    try:
        return key.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _explain(kind: type[Settings], error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "value_error":
            parts.append(plain_message(problem["msg"]))
        elif problem["type"] == "extra_forbidden":
            known = kind.model_fields
            parts.append(f"unknown recipe key {key!r};{did_you_mean(key, known)} known keys: {', '.join(known)}")
        else:
            parts.append(f"recipe key {key!r}: {problem['msg']}, found {problem['input']!r}")
    return "; ".join(parts)
