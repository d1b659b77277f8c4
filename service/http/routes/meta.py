"""Service information, and the web page."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from service.http.context import Context
from service.http.schemas import BackboneOut, InfoOut
from service.observability.device import package_version

router = APIRouter(tags=["about"])

PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _page() -> str:
    return resources.files("service").joinpath("web/page.html").read_text(encoding="utf-8")


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
            dtype=str(backbone.dtype).removeprefix("torch."),
        ),
        preprocess=context.settings.preprocess,
        store_is_writable=context.store.is_writable,
        limits=context.settings.limits(),
    )


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The web page; self-contained."""
    return HTMLResponse(_page(), headers={"Content-Security-Policy": PAGE_POLICY})
