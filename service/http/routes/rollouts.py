"""Routes for the rollout of a domain: start, show, stop."""

from __future__ import annotations

from fastapi import APIRouter, Request

from prompt_store.rollouts import RolloutPlan
from service.domains.live_table import DomainState, RunningRollout
from service.http.context import Context, actor_of
from service.http.routes.responses import refuse_when_draining
from service.http.schemas import RolloutBody, RolloutOut

router = APIRouter(tags=["domains"])


@router.post("/domains/{domain}/rollout", status_code=201)
async def start_rollout(request: Request, domain: str, body: RolloutBody, context: Context) -> RolloutOut:
    """Compare a stored version with the live one on a share of the requests; at most one rollout per domain."""
    refuse_when_draining(context)
    plan = RolloutPlan(**body.model_dump())
    running = await context.rollouts.start(domain, plan, actor=actor_of(request))
    return _shown(running, context.table.state(domain))


@router.get("/domains/{domain}/rollout")
async def show_rollout(domain: str, context: Context) -> RolloutOut:
    """Show the running rollout with its figures."""
    running = context.rollouts.find(domain)
    return _shown(running, context.table.state(domain))


@router.delete("/domains/{domain}/rollout", status_code=204)
async def stop_rollout(request: Request, domain: str, context: Context) -> None:
    """Stop the running rollout; the live version answers all requests again."""
    refuse_when_draining(context)
    await context.rollouts.stop(domain, actor=actor_of(request))


def _shown(running: RunningRollout, state: DomainState) -> RolloutOut:
    rollout, tally = running.rollout, running.tally
    return RolloutOut(
        **rollout.plan.model_dump(include=set(RolloutBody.model_fields)),
        domain=running.candidate.domain,
        digest=running.candidate.digest,
        live_version=state.live.version if state.live else 0,
        started_at=rollout.at,
        started_by=rollout.actor,
        n_compared=tally.n_compared,
        n_disagreed=tally.n_disagreed,
        n_failed=tally.n_failed,
        n_dropped=tally.n_dropped,
        disagreement=tally.disagreement,
        confidence_shift=tally.confidence_shift,
        confidence_shift_error=tally.confidence_shift_error,
    )
