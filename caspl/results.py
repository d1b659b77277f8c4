"""Results of the public API."""

from dataclasses import dataclass

from caspl.errors import CasplError


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
    """

    domain: str | None
    version: int | None = None
    digest: str | None = None
    predictions: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()
    error: CasplError | None = None

    @property
    def label(self) -> str:
        """The most probable class; raises `error` if it is set."""
        return self._best.label

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
