"""The values that the example database stores and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    """

    label: str | None
    sha256: str
    thumbnail: bytes
    picture: bytes | None = None
    features: Mapping[str, bytes] = field(default_factory=dict)


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
