"""The manifest of a bundle as frozen pydantic models.

Unknown fields are preserved and otherwise ignored. Class names are validated in `class_names.py`.
"""

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from prompt_store.digest import DIGEST_PATTERN
from prompt_store.errors import BundleInvalidError

DEFAULT_TEMPLATE: Final = "a photo of a {}."
"""The text around a class name if no other template is given."""
MAX_ABSTENTION_RATES: Final = 16
MAX_CLASSES: Final = 10_000
MAX_DEPTH: Final = 64
MAX_DOMAIN_CHARS: Final = 64
MAX_TEMPLATES: Final = 256
MAX_TOKENS: Final = 64

_DOMAIN: Final = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
# Device names on some systems, or path prefixes of the service.
RESERVED_DOMAINS: Final = frozenset(
    {"aux", "con", "nul", "prn", "v1", "v2", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}
)


def is_domain(text: str) -> bool:
    """Whether the text is a domain name: `[a-z][a-z0-9]*(-[a-z0-9]+)*`, at most 64 characters, not reserved."""
    return len(text) <= MAX_DOMAIN_CHARS and _DOMAIN.fullmatch(text) is not None and text not in RESERVED_DOMAINS


def check_domain(text: str) -> str:
    """Validate a domain name and return it unchanged.

    Raises:
        BundleInvalidError: `name_invalid`.
    """
    if not is_domain(text):
        raise BundleInvalidError(
            "name_invalid",
            "Not a valid domain name: use lower-case letters, digits and single hyphens, start with a letter, "
            f"at most {MAX_DOMAIN_CHARS} characters{_proposed(text)}; some names are reserved.",
            field="domain",
        )
    return text


def _proposed(text: str) -> str:
    """A valid name that resembles an invalid one, if there is one, as a part of a message."""
    plain = unicodedata.normalize("NFKD", text[:MAX_DOMAIN_CHARS]).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return f", for example {name}" if is_domain(name) else ""


def _domain(text: str) -> str:
    if not is_domain(text):
        raise ValueError("not a domain name")
    return text


def _template(text: str) -> str:
    if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1:
        raise ValueError("a template must contain {} exactly once and no other braces")
    return text


Template = Annotated[str, Field(max_length=512), AfterValidator(_template)]
"""Text with one `{}`, which the class text replaces."""


def _plain_integer(value: object) -> object:
    if type(value) is not int:  # True and 1.0 equal 1 and would pass
        raise ValueError("must be an integer")
    return value


def _utc(text: str) -> str:
    if not text.endswith(("Z", "+00:00")) or datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("must be ISO 8601 in UTC, such as 2026-01-31T12:00:00Z")
    return text


class _ManifestModel(BaseModel):
    """Frozen, strict types, unknown fields preserved, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class BackboneSpec(_ManifestModel):
    """The frozen CLIP a bundle was trained on: open_clip's names and the fingerprint of the weights."""

    arch: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    pretrained: Annotated[str, Field(max_length=256)] | None = None
    fingerprint: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]
    image_size: Annotated[int, Field(ge=1, le=4096)]
    preprocess: dict[str, Any] = Field(default_factory=dict)

    def first_difference(self, other: "BackboneSpec") -> tuple[str, object, object] | None:
        """The first fact in which two backbones differ, and both values; None if they are the same.

        Preprocessing facts that only one of them has are ignored, and so is the activation in the name of an
        architecture: open_clip's tags can override it, and the fingerprint covers it.
        """
        facts: dict[str, tuple[object, object]] = {
            "fingerprint": (self.fingerprint, other.fingerprint),
            "arch": (self.arch.removesuffix("-quickgelu"), other.arch.removesuffix("-quickgelu")),
            "image_size": (self.image_size, other.image_size),
        }
        facts |= {name: (mine, other.preprocess.get(name, mine)) for name, mine in self.preprocess.items()}
        return next(((fact, *values) for fact, values in facts.items() if values[0] != values[1]), None)


class ClassSpec(_ManifestModel):
    """One class: the label in responses and the text encoded for it."""

    name: str
    text: str


class GroupSpec(_ManifestModel):
    """One prompt group: `tokens` tokens in each of the first `depth` layers."""

    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)]
    tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class GroupsSpec(_ManifestModel):
    """The prompt groups of one tower."""

    boost: GroupSpec | None = None
    adapt: GroupSpec | None = None


class StackSpec(_ManifestModel):
    """The prompts in the bundle and the kind of head.

    Attributes:
        head: `static`, fixed text features; `conditional`, text features computed per image.
        image, text: the prompt groups of each tower.
        labels: `own`, the bundle's classes only; `any`, open-vocabulary requests work too.
        head_share: weight of a linear class head in the logits, 0 to 1; None without such a head.
        head_input: input of a linear class head: the image embedding, or the same normalized to length 1.
    """

    head: Literal["static", "conditional"]
    image: GroupsSpec
    text: GroupsSpec
    labels: Literal["any", "own"] = "any"
    head_share: Annotated[float, Field(ge=0, le=1)] | None = None
    head_input: Literal["embedding", "unit"] = "embedding"

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit fields that were added later when they have their defaults, so that digests stay the same."""
        return _without(dump(self), {"labels": "any", "head_share": None, "head_input": "embedding"})


class Calibration(_ManifestModel):
    """Calibration of the probabilities of the bundle's own classes.

    Attributes:
        temperature: the logits are divided by it.
        abstain: by abstention rate, such as `0.05`: the probability below which the best class is too uncertain.
    """

    temperature: Annotated[float, Field(ge=0.001, le=1000)]
    abstain: Annotated[
        dict[Annotated[str, Field(pattern=r"^0\.[0-9]{1,4}$")], Annotated[float, Field(ge=0, le=1)]],
        Field(max_length=MAX_ABSTENTION_RATES),
    ] = Field(default_factory=dict)


class Provenance(_ManifestModel):
    """How the bundle was trained; informational only."""

    method: Annotated[str, Field(min_length=1, max_length=64)]
    phase: Literal["plain", "boost", "adapt"]
    recipe: dict[str, Any] = Field(default_factory=dict)
    data_digests: dict[str, str] = Field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    seed: int | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    code_version: Annotated[str, Field(max_length=128)]
    created: Annotated[str, Field(max_length=40), AfterValidator(_utc)]


class Manifest(_ManifestModel):
    """The manifest; `logit_scale` is the multiplier s = exp(t), about 100 for CLIP."""

    format: Annotated[Literal[1], BeforeValidator(_plain_integer)] = 1
    domain: Annotated[str, AfterValidator(_domain)]
    backbone: BackboneSpec
    classes: Annotated[list[ClassSpec], Field(min_length=1, max_length=MAX_CLASSES)]
    templates: Annotated[list[Template], Field(max_length=MAX_TEMPLATES)]
    logit_scale: Annotated[float, Field(gt=0, le=10_000)]
    stack: StackSpec
    provenance: Provenance
    calibration: Calibration | None = None

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in `StackSpec`."""
        return _without(dump(self), {"calibration": None})


def _without(fields: dict[str, Any], defaults: Mapping[str, object]) -> dict[str, Any]:
    """The fields that differ from these defaults."""
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}
