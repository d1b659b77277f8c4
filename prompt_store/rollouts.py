"""Rollouts: a candidate version beside the live one of a domain, as it is recorded in the domain's log.

A start, a stop and an automatic end are records with the action `activate` of the version that is live already, and a
field `rollout`. Releases without rollouts ignore that field, so they read these records as activations that change
nothing.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from prompt_store.digest import DIGEST_PATTERN

MAX_DETAIL_CHARS = 200

Event = Literal["start", "stop", "rollback", "complete"]
Ratio = Annotated[float, Field(ge=0, le=1)]


class RolloutPlan(BaseModel):
    """The candidate, the share of requests and the end of a rollout.

    Attributes:
        version: the candidate.
        mode: `canary`, the candidate answers a share of the requests; `shadow`, it only scores copies of them.
        percent: the share, above 0 to 100.
        max_disagreement: the rollout ends if the two versions disagree about more than this share of the images.
        max_confidence_shift: the same for the mean difference of their highest probabilities.
        min_images: compared images before the first decision.
        then: after `min_images`, `activate` makes the candidate live; `hold` continues until the rollout is ended.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    version: Annotated[int, Field(ge=1)]
    mode: Literal["canary", "shadow"] = "shadow"
    percent: Annotated[float, Field(gt=0, le=100)] = 10.0
    max_disagreement: Ratio = 0.05
    max_confidence_shift: Ratio = 0.1
    min_images: Annotated[int, Field(ge=1, le=10**6)] = 200
    then: Literal["activate", "hold"] = "hold"


class RolloutChange(BaseModel):
    """The field `rollout` of a record.

    Attributes:
        event: `start`; `stop`, on request; `rollback`, a threshold was exceeded; `complete`, the candidate was
            activated by the rollout's own plan.
        version: the candidate.
        digest: its digest.
        plan: of a start; None otherwise.
        detail: the figures of an automatic end.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    event: Event
    version: Annotated[int, Field(ge=1)]
    digest: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]
    plan: RolloutPlan | None = None
    detail: Annotated[str, Field(max_length=MAX_DETAIL_CHARS)] = ""


@dataclass(frozen=True)
class Rollout:
    """A running rollout; `seq` is the number of the record that started it, `at` is ISO 8601 in UTC."""

    seq: int
    plan: RolloutPlan
    digest: str
    at: str
    actor: str
