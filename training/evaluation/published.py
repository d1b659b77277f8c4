"""Published results for CLIP ViT-B/16 with OpenAI's weights, in per cent, for comparison.

They are valid for the eleven data sets of those papers in CoOp's splits only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from training.evaluation.caspl_tables import BASE_TO_NEW, CASPL_PAPER, SHOTS
from training.evaluation.metrics import harmonic_mean
from training.evaluation.rows import ZERO_SHOT

BACKBONE: Final = "CLIP ViT-B/16 (OpenAI)"
GDA_PAPER: Final = "A Hard-to-Beat Baseline for Training-Free CLIP-Based Adaptation (arXiv 2402.04087)"
GDA_LOGS: Final = f"{GDA_PAPER}, logs in its repository"
CASPL_PAGE: Final = f"{CASPL_PAPER} and its repository's README"
CASPL_TABLE: Final = f"{CASPL_PAPER}, table 1"


@dataclass(frozen=True)
class Published:
    """Published base-to-new accuracy: base, new, harmonic mean, source."""

    base: float
    new: float
    h: float
    source: str


@dataclass(frozen=True)
class PublishedShots:
    """Published few-shot accuracy by number of shots, averaged over the eleven data sets."""

    method: str
    boosted: bool
    by_shots: Mapping[int, float]
    source: str = CASPL_PAGE


PAPER_DATASETS: Final = tuple(BASE_TO_NEW)

_GDA: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "imagenet": (75.95, 69.79),
        "caltech101": (98.04, 94.51),
        "oxford_pets": (94.10, 97.15),
        "stanford_cars": (78.71, 66.92),
        "oxford_flowers": (97.78, 72.46),
        "food101": (90.63, 91.21),
        "fgvc_aircraft": (45.88, 34.09),
        "sun397": (81.95, 75.62),
        "dtd": (80.63, 59.82),
        "eurosat": (93.28, 79.21),
        "ucf101": (86.63, 79.09),
    }
)
"""Base and new accuracy."""

MEANS: Final[Mapping[tuple[str, bool], Published]] = MappingProxyType(
    {
        (method, boosted): Published(base, new, h, CASPL_PAGE)
        for method, boosted, base, new, h in (
            (ZERO_SHOT, False, 69.34, 74.22, 71.70),
            ("coop", False, 82.69, 63.22, 71.66),
            ("coop", True, 84.78, 74.49, 79.30),
            ("cocoop", False, 80.47, 71.69, 75.83),
            ("cocoop", True, 83.63, 78.12, 80.78),
            ("maple", False, 82.28, 75.14, 78.55),
            ("maple", True, 84.48, 79.59, 81.96),
            ("promptsrc", False, 84.26, 76.10, 79.97),
            ("promptsrc", True, 86.11, 79.54, 82.69),
        )
    }
    # H as printed; lower than that of the two means, as a mean over data sets is.
    | {("gda", False): Published(83.96, 74.53, 78.72, GDA_PAPER)}
)

FEW_SHOT_MEANS: Final[tuple[PublishedShots, ...]] = (
    *(
        PublishedShots(method, boosted, MappingProxyType(dict(zip(SHOTS, values, strict=True))))
        for method, boosted, values in (
            ("linear probe", False, (45.83, 57.98, 68.01, 74.47, 78.79)),
            ("coop", False, (67.56, 70.65, 74.02, 76.98, 79.89)),
            ("cocoop", False, (66.79, 67.65, 71.21, 72.96, 74.90)),
            ("maple", False, (69.27, 72.58, 75.37, 78.89, 81.79)),
            ("promptsrc", False, (72.32, 75.29, 78.35, 80.69, 82.87)),
            ("promptsrc", True, (75.91, 77.94, 80.45, 82.22, 84.49)),
        )
    ),
    PublishedShots("gda", False, MappingProxyType({16: 81.85}), GDA_LOGS),
)


def published(dataset: str, method: str, *, boosted: bool) -> Published | None:
    """Published base-to-new results for one data set, as printed; GDA's H is computed. None if there are none.

    Args:
        dataset: a catalog name.
        method: as in `--method`, or `zero-shot`.
        boosted: with boosting prompts.
    """
    if method == "gda" and not boosted and dataset in _GDA:
        base, new = _GDA[dataset]
        return Published(base, new, round(harmonic_mean(base, new), 2), GDA_LOGS)
    printed = BASE_TO_NEW.get(dataset, {}).get((method, boosted))
    return None if printed is None else Published(*printed, CASPL_TABLE)


def published_shots(method: str, *, boosted: bool) -> PublishedShots | None:
    """Published few-shot results, averaged over the eleven data sets."""
    return next((row for row in FEW_SHOT_MEANS if (row.method, row.boosted) == (method, boosted)), None)
