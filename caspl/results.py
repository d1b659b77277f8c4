"""Results of the public API."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from caspl.errors import CasplError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image.

    Attributes:
        label: the class name.
        class_id: position among the bundle's classes, or among `labels` if those were given.
        probability: 0 to 1; the probabilities of all classes sum to 1.
    """

    label: str
    class_id: int
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The result for one image: predictions, or an error.

    Attributes:
        domain: the domain whose classes and prompts were used.
        version: the domain's version in the store; None for a bundle that was loaded from a file.
        digest: `sha256:...` of the bundle; None without a bundle.
        predictions: most probable first; empty if `error` is set.
        notes: how the image was converted, such as `cmyk`.
        error: why this image has no predictions.
        abstained: with `abstain`, whether even the most probable class is too uncertain.
        embedding: if requested, the unit-norm image embedding, [E] float32.
        is_candidate: whether `version` is the candidate of a rollout, not the live one.
    """

    domain: str | None
    version: int | None = None
    digest: str | None = None
    predictions: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()
    error: CasplError | None = None
    abstained: bool = False
    embedding: "NDArray[np.float32] | None" = field(default=None, compare=False, repr=False)
    is_candidate: bool = False

    @property
    def label(self) -> str | None:
        """The most probable class, None if `abstained`; raises `error` if it is set."""
        best = self._best
        return None if self.abstained else best.label

    @property
    def probability(self) -> float:
        """The most probable class's probability; raises `error` if it is set."""
        return self._best.probability

    @property
    def _best(self) -> Prediction:
        if self.error is not None:
            raise self.error
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain of a server and its live version, if it has one.

    Attributes:
        state: `live`, `stale` (an older version answers), `broken` or `idle` (no live version).
    """

    name: str
    state: str
    version: int | None
    digest: str | None
    n_classes: int | None


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a domain after it was published, activated or rolled back to.

    Attributes:
        is_new: whether publishing stored it; False if the newest version already had this content.
    """

    domain: str
    version: int
    digest: str
    is_live: bool = True
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """A running rollout, with the counts of one server since its start.

    Attributes:
        version: the candidate.
        digest: `sha256:...` of its bundle.
        mode: `canary` or `shadow`.
        percent: share of the requests that take part.
        max_disagreement: a larger `disagreement` ends the rollout.
        max_confidence_shift: a larger `confidence_shift`, by more than three standard errors, ends it, too.
        min_images: compared images before the first decision.
        then: `activate` or `hold`, after `min_images`.
        n_compared: images that both versions were given.
        n_disagreed: of these, those with another most probable class.
        n_failed: of these, those that the candidate could not score.
        n_dropped: images that were not compared, usually because the device was busy.
        disagreement: share of the compared images, failed ones included; None without any.
        confidence_shift: mean difference of the highest probabilities, candidate minus live; None without any.
        confidence_shift_error: its standard error; None with fewer than two images.
    """

    domain: str
    version: int
    digest: str
    live_version: int
    mode: str
    percent: float
    max_disagreement: float
    max_confidence_shift: float
    min_images: int
    then: str
    started_at: str
    started_by: str
    n_compared: int
    n_disagreed: int
    n_failed: int
    n_dropped: int
    disagreement: float | None
    confidence_shift: float | None
    confidence_shift_error: float | None


@dataclass(frozen=True, slots=True)
class AddedExample:
    """A picture after it was added to a domain's examples, or its error.

    Attributes:
        id: the example's number.
        status: `added`, `exists` (the domain has this picture already) or `relabelled`.
        label: its label, None without one.
        prediction: the most probable class of the live version.
        error: why the picture was rejected.
    """

    id: int | None = None
    status: str | None = None
    label: str | None = None
    prediction: Prediction | None = None
    error: CasplError | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A picture that is kept for a domain.

    Attributes:
        id: its number.
        label: None without one.
        predicted: class that the current fit predicts, leave-one-out if labelled; None without a fit.
        margin: how much more probable the predicted class is than the next; None likewise.
        source: `upload` or `traffic`.
        added_by: the API key's id; empty without one.
        added_at: ISO 8601, UTC.
        is_confirmed: whether a person confirmed the label; False from a server that has no confirmations.
        name: file name that it was added under last; None without one.
    """

    id: int
    label: str | None
    predicted: str | None
    margin: float | None
    source: str
    added_by: str
    added_at: str
    is_confirmed: bool = False
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """A head fitted to a domain's examples.

    Attributes:
        report: accuracy, suspects and calibration, as documented in docs/few-shot.md.
        version: the published version; None for a report only.
        digest: `sha256:...` of its bundle.
        is_live: whether it is live.
        new_classes: classes that the base version lacks.
    """

    domain: str
    report: dict[str, Any]
    version: int | None = None
    digest: str | None = None
    is_live: bool = False
    new_classes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Leave-one-out accuracy, 0 to 1."""
        return float(self.report["accuracy"]["rate"])
