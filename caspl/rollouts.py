"""The operations of a CasPL server's clients for rollouts: start, show, stop."""

from dataclasses import fields
from typing import Any, Literal

from caspl.errors import NotFoundError
from caspl.requests import Operation, Request, accepted, domain_path
from caspl.results import Rollout

NOT_FOUND = "rollout_not_found"


def start_rollout(
    domain: str,
    version: int,
    *,
    mode: Literal["canary", "shadow"] = "shadow",
    percent: float = 10.0,
    max_disagreement: float = 0.05,
    max_confidence_shift: float = 0.1,
    min_images: int = 200,
    then: Literal["activate", "hold"] = "hold",
) -> Operation[Rollout]:
    """Compare a stored version with the live one on a share of the requests; returns once requests take part.

    Args:
        domain: its domain.
        version: the candidate.
        mode: `canary`, the candidate answers these requests; `shadow`, it only scores copies of their images.
        percent: the share, above 0 to 100.
        max_disagreement: a larger share of images with another most probable class ends the rollout.
        max_confidence_shift: a larger mean difference of the highest probabilities ends it, too.
        min_images: compared images before the first decision.
        then: `activate` makes the candidate live after `min_images`, `hold` goes on.

    Raises:
        ConflictError: a rollout is running, or the version is live.
        CasplError: no such domain or version, a value is not accepted, or the server cannot be reached or fails.
    """
    body: dict[str, Any] = {
        "version": version,
        "mode": mode,
        "percent": percent,
        "max_disagreement": max_disagreement,
        "max_confidence_shift": max_confidence_shift,
        "min_images": min_images,
        "then": then,
    }
    return _rollout(accepted((yield Request("POST", domain_path(domain, "rollout"), {"json": body})), "version"))


def rollout(domain: str) -> Operation[Rollout | None]:
    """The running rollout of a domain, None if there is none.

    Raises:
        CasplError: no such domain, or the server cannot be reached or fails.
    """
    try:
        return _rollout(accepted((yield Request("GET", domain_path(domain, "rollout"))), "version"))
    except NotFoundError as error:
        if error.code != NOT_FOUND:
            raise
        return None


def stop_rollout(domain: str) -> Operation[None]:
    """Stop the running rollout: the live version answers all requests again.

    Raises:
        NotFoundError: no such domain, or no rollout is running.
        CasplError: the server cannot be reached or fails.
    """
    response = yield Request("DELETE", domain_path(domain, "rollout"))
    if not response.is_success:
        accepted(response, "")


def _rollout(body: dict[str, Any]) -> Rollout:
    return Rollout(**{field.name: body[field.name] for field in fields(Rollout)})
