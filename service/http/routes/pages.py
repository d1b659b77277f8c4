"""The web page and the API documentation; all their files are served from here, and scripts are never inline."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript"}
SWAGGER_UI: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js"})
WEB: Final = resources.files("service") / "web"
MAX_AGE_S: Final = 3600


@cache
def _files() -> Mapping[str, Traversable]:
    """The files of the pages by name: the project's own, vendored libraries, Swagger UI."""
    own = [file for folder in (WEB, WEB / "vendor") for file in folder.iterdir()]
    swagger_ui = [resources.files("fastapi_offline") / "static" / name for name in SWAGGER_UI]
    return {file.name: file for file in (*own, *swagger_ui) if file.name.endswith((".css", ".js", ".html"))}


@cache
def _read(name: str) -> bytes:
    return _files()[name].read_bytes()


@router.get("/")
async def page() -> Response:
    """The web page; it requests a key if the service requires one, and keeps it in memory."""
    return _html("page.html")


@router.get("/docs")
async def docs() -> Response:
    """The API documentation, Swagger UI."""
    return _html("docs.html")


@router.get("/assets/{name}")
async def asset(name: str) -> Response:
    """A script or style sheet of a page."""
    media_type = MEDIA_TYPES.get(name[name.rfind(".") :])
    if media_type is None or name not in _files():
        raise HTTPException(404)
    return Response(_read(name), media_type=media_type, headers={"Cache-Control": f"max-age={MAX_AGE_S}"})


def _html(name: str) -> Response:
    return HTMLResponse(_read(name), headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})
