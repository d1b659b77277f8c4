"""`GET /domains/{domain}/examples/groups`: unlabelled examples in groups of similar images, to label many at once."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query

from prompted_clip.groups import group_similar
from service.examples.connections import in_thread
from service.http.context import Context, ServiceContext
from service.http.schemas import GroupsOut

router = APIRouter(tags=["examples"])

MAX_GROUPED: Final = 2000


@router.get("/domains/{domain}/examples/groups")
async def list_groups(
    domain: str,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=MAX_GROUPED, description="maximum number, the oldest examples first")] = 500,
) -> GroupsOut:
    """Group a domain's unlabelled examples by the similarity of their embeddings under the live version."""
    live = context.table.pin(domain)
    return await in_thread(_grouped, context, domain, context.backend.feature_key(live.stack), limit)


def _grouped(context: ServiceContext, domain: str, feature_key: str, limit: int) -> GroupsOut:
    found = context.examples.unlabelled(domain, feature_key)
    groups = group_similar(found.features_NE[:limit])
    return GroupsOut(
        domain=domain,
        groups=[[found.ids_N[row] for row in rows] for rows in groups],
        not_grouped=[*found.ids_N[limit:], *found.stale_ids],
    )
