"""Service information."""

from __future__ import annotations

from fastapi import APIRouter

from service.http.context import Context
from service.http.schemas import BackboneOut, BatchesOut, InfoOut
from service.observability.device import package_version
from service.process import usable_cores

router = APIRouter(tags=["about"])


@router.get("/info")
async def info(context: Context) -> InfoOut:
    """Backbone, device, preprocessing and limits."""
    engine = context.engine
    backbone = engine.backbone
    return InfoOut(
        name="CasPL Serve",
        version=package_version(),
        backbone=BackboneOut(
            arch=backbone.arch,
            pretrained=backbone.pretrained,
            fingerprint=backbone.fingerprint,
            image_size=backbone.image_size,
            device=str(backbone.device),
            backend=engine.backend,
            dtype=engine.dtype,
        ),
        preprocess=context.settings.preprocess,
        store_is_writable=context.store.is_writable,
        batches=BatchesOut(
            max_rows=engine.max_batch_rows(context.settings.max_batch_rows),
            n_concurrent=engine.num_streams,
            n_pipelined=engine.pipeline_depth,
            n_cores=usable_cores(),
        ),
        limits=context.settings.limits(),
    )
