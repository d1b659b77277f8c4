"""The OpenAPI document: the API key that each route requires."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from service.access.keys import KeyRing
from service.access.rules import RULES

SCHEME: Final = "api_key"
SECURITY_SCHEMES: Final = {
    SCHEME: {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "pk_<id>_<secret>",
        "description": "An API key, created by `caspl keys new`. Each route lists the scope that the key needs.",
    }
}


class Application(FastAPI):
    """FastAPI without its documentation pages, and with the required key of each route in the OpenAPI document."""

    def __init__(self, keys: KeyRing, **options: Any) -> None:  # noqa: ANN401  FastAPI's own
        super().__init__(docs_url=None, redoc_url=None, redirect_slashes=False, **options)
        self._keys = keys

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; without keys in this process they are optional."""
        document = super().openapi()
        document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
        optional: list[dict[str, list[str]]] = [{}] if self._keys.is_open else []
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                scope = RULES[path][method.upper()]
                required = [{SCHEME: [] if scope == "any" else [scope]}]
                operation["security"] = [] if scope == "none" else [*optional, *required]
        return document
