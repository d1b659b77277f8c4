"""The values that the example database stores and returns, and fits to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prompted_clip.fit_report import AUTO

if TYPE_CHECKING:
    from prompt_store.bundle import Bundle
    from prompted_clip.features import LinearTerm
    from prompted_clip.fit_report import FitReport, Suspect
    from prompted_clip.fitted_bundle import FitClasses

ClassChoice = Literal["own", "examples"]
Source = Literal["upload", "traffic"]
"""Added by a person, or kept from classify requests because of `keep_uncertain`."""


@dataclass(frozen=True, slots=True)
class NewExample:
    """A picture to add.

    Args:
        label: normalised class name; None leaves the example unlabelled.
        sha256: hex digest of the picture's file.
        thumbnail: WebP.
        picture: the file itself, if it is kept.
        features: unit-norm float32, little endian, by feature key.
        name: of the file, if it has one.
    """

    label: str | None
    sha256: str
    thumbnail: bytes
    picture: bytes | None = None
    features: Mapping[str, bytes] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """Result for one picture: `exists` if the domain had it with this label, or if it was added without a label.

    `label` is the example's label now.
    """

    id: int
    status: Literal["added", "exists", "relabelled"]
    label: str | None


@dataclass(frozen=True, slots=True)
class Example:
    """An example without its pictures.

    Attributes:
        added_at: ISO 8601 in UTC.
        n_bytes: size of thumbnail, picture and features.
        has_picture: whether the picture itself is kept.
        is_confirmed: whether a person confirmed the label, so that it is no suspect.
        name: file name that it was added under last; None if it never had one.
    """

    id: int
    domain: str
    label: str | None
    sha256: str
    source: Source
    added_by: str
    added_at: str
    n_bytes: int
    has_picture: bool
    is_confirmed: bool
    name: str | None


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """A domain's labelled or unlabelled examples for one feature key, by ascending id.

    Attributes:
        ids_N: examples that have a feature.
        labels_N: their labels; empty for unlabelled examples.
        features_NE: unit norm, float32.
        stale_ids: examples without a feature for this key.
        digest: SHA-256 over digest and label of the examples in `ids_N`, independent of their order and ids.
        revision: of the domain when the set was read.
    """

    ids_N: list[int]
    labels_N: list[str]
    features_NE: NDArray[np.float32]
    stale_ids: list[int]
    digest: str
    revision: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of a domain's examples; `by_label` is sorted by label, `n_bytes` as in `Example`."""

    labelled: int
    unlabelled: int
    by_label: dict[str, int]
    n_bytes: int


class LeftOutPrediction(NamedTuple):
    """An example's most probable class in a fit without this example, and its margin over the second, 0 to 1."""

    predicted: str
    margin: float


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        based_on: number of the base version; None for the live one.
        method: a key of `FEW_SHOT_METHODS`, or `auto`.
        classes: `own`, those of the base version followed by new ones; `examples`, those of the examples.
        unlabelled: use the unlabelled examples, if that improves the fit.
    """

    based_on: int | None = None
    method: str = AUTO
    classes: ClassChoice = "own"
    unlabelled: bool = False


@dataclass(frozen=True, eq=False)
class DomainFit:
    """A fit to the examples of a domain.

    Attributes:
        base: the bundle whose prompts and text features are used.
        base_version: its number.
        revision: of the examples.
        digests: of the labelled examples and, if the fit could use them, of the unlabelled ones.
        options: as requested.
        classes: of the fit.
        new_classes: those that the base version lacks.
        term: see `FewShotFit`.
        report: the positions of its suspects are those of `ids_N`.
        ids_N: the labelled examples.
        predictions: of labelled and unlabelled examples, by id.
    """

    base: Bundle
    base_version: int
    revision: int
    digests: Mapping[str, str]
    options: FitOptions
    classes: FitClasses
    new_classes: tuple[str, ...]
    term: LinearTerm
    report: FitReport
    ids_N: Sequence[int]
    predictions: Mapping[int, LeftOutPrediction]

    def suspects(self, confirmed: Collection[int]) -> dict[int, Suspect]:
        """Examples with a suspicious label by id, the most suspicious one first, without the confirmed ones."""
        found = {self.ids_N[suspect.index]: suspect for suspect in self.report.suspects}
        return {number: suspect for number, suspect in found.items() if number not in confirmed}

    @property
    def uncertain_ids(self) -> list[int]:
        """Unlabelled examples, the smallest margin first."""
        unlabelled = self.predictions.keys() - set(self.ids_N)
        return sorted(unlabelled, key=lambda number: (self.predictions[number].margin, number))
