"""Service information."""

from __future__ import annotations

from fastapi import APIRouter

from service.http.context import Context
from service.http.schemas import BackboneOut, InfoOut
from service.observability.device import package_version

router = APIRouter(tags=["about"])


@router.get("/info")
async def info(context: Context) -> InfoOut:
    """Backbone, device, preprocessing and limits."""
    backbone = context.engine.backbone
    return InfoOut(
        name="CasPL Serve",
        version=package_version(),
        backbone=BackboneOut(
            arch=backbone.arch,
            pretrained=backbone.pretrained,
            fingerprint=backbone.fingerprint,
            image_size=backbone.image_size,
            device=str(backbone.device),
            backend=context.engine.backend,
            dtype=context.engine.dtype,
        ),
        preprocess=context.settings.preprocess,
        store_is_writable=context.store.is_writable,
        limits=context.settings.limits(),
    )
