"""The OpenAPI document: the API key that each route requires, and examples in three languages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from fastapi import FastAPI

from service.access.keys import KeyRing
from service.access.rules import RULES

URL: Final = "http://localhost:8000"
SCHEME: Final = "api_key"
SECURITY_SCHEMES: Final = {
    SCHEME: {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "pk_<id>_<secret>",
        "description": "An API key, created by `caspl keys new`. Each route lists the scope that the key needs.",
    }
}


class Sample(NamedTuple):
    """An example of a call, with the files `photo.jpg`, `photo-2.png`, `photo-3.jpg` and `bundle.safetensors`.

    Args:
        path: with values for its parameters, and a query.
        file: the body, with `media_type`.
        json: or a body as JSON.
        form: or a multipart body: file by field.
        saved_as: the file for a response that is not JSON.
        has_content: whether the response has a body.
    """

    path: str
    file: str = ""
    media_type: str = ""
    json: str = ""
    form: Mapping[str, str] = MappingProxyType({})
    saved_as: str = ""
    has_content: bool = True


_INFERENCE: Final = (
    '{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [255, 0, 0, 0, 0, 255]}]}'
)
_EMBEDDING: Final = (
    '{"model": "satellite", "input": ["data:image/png;base64,'
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"]}'
)
SAMPLES: Final[Mapping[tuple[str, str], Sample]] = {
    ("POST", "/classify/{domain}"): Sample("/classify/satellite?top_k=3", "photo.jpg", "image/jpeg"),
    ("POST", "/classify"): Sample("/classify", form={"satellite": "photo.jpg", "thermal": "photo-2.png"}),
    ("GET", "/domains"): Sample("/domains"),
    ("GET", "/domains/{domain}"): Sample("/domains/satellite"),
    ("PUT", "/domains/{domain}"): Sample("/domains/stars", json='{"classes": ["red star", "green star"]}'),
    ("GET", "/domains/{domain}/versions"): Sample("/domains/satellite/versions"),
    ("POST", "/domains/{domain}/versions"): Sample(
        "/domains/thermal/versions?activate=true", "bundle.safetensors", "application/octet-stream"
    ),
    ("GET", "/domains/{domain}/versions/{version}"): Sample("/domains/thermal/versions/2"),
    ("GET", "/domains/{domain}/versions/{version}/content"): Sample(
        "/domains/thermal/versions/2/content", saved_as="copy.safetensors"
    ),
    ("POST", "/domains/{domain}/rollback"): Sample("/domains/thermal/rollback"),
    ("PUT", "/domains/{domain}/live"): Sample("/domains/thermal/live", json='{"version": 1}'),
    ("GET", "/domains/{domain}/history"): Sample("/domains/thermal/history?limit=10"),
    ("POST", "/domains/{domain}/rollout"): Sample(
        "/domains/thermal/rollout", json='{"version": 2, "mode": "canary", "percent": 10}'
    ),
    ("GET", "/domains/{domain}/rollout"): Sample("/domains/thermal/rollout"),
    ("DELETE", "/domains/{domain}/rollout"): Sample("/domains/thermal/rollout", has_content=False),
    ("DELETE", "/domains/{domain}/versions/{version}"): Sample("/domains/thermal/versions/2", has_content=False),
    ("POST", "/domains/{domain}/examples"): Sample(
        "/domains/satellite/examples",
        form={"striped donut": "photo.jpg", "checkered cross": "photo-2.png", "unlabelled": "photo-3.jpg"},
    ),
    ("GET", "/domains/{domain}/examples"): Sample("/domains/satellite/examples?labelled=true&limit=10"),
    ("GET", "/domains/{domain}/examples/groups"): Sample("/domains/satellite/examples/groups"),
    ("GET", "/domains/{domain}/examples/{example}/thumbnail"): Sample(
        "/domains/satellite/examples/1/thumbnail", saved_as="thumbnail.webp"
    ),
    ("PATCH", "/domains/{domain}/examples"): Sample(
        "/domains/satellite/examples", json='{"ids": [3], "label": "plain crescent"}'
    ),
    ("GET", "/domains/{domain}/fit"): Sample("/domains/satellite/fit"),
    ("POST", "/domains/{domain}/fit"): Sample("/domains/satellite/fit", json='{"activate": true}'),
    ("DELETE", "/domains/{domain}/examples/{example}"): Sample("/domains/satellite/examples/3", has_content=False),
    ("DELETE", "/domains/{domain}/examples"): Sample("/domains/satellite/examples?ids=1,2"),
    ("GET", "/livez"): Sample("/livez"),
    ("GET", "/readyz"): Sample("/readyz"),
    ("GET", "/metrics"): Sample("/metrics", saved_as="metrics.txt"),
    ("GET", "/info"): Sample("/info"),
    ("POST", "/v1/embeddings"): Sample("/v1/embeddings", json=_EMBEDDING),
    ("GET", "/v2"): Sample("/v2"),
    ("GET", "/v2/health/live"): Sample("/v2/health/live"),
    ("GET", "/v2/health/ready"): Sample("/v2/health/ready"),
    ("GET", "/v2/models/{domain}"): Sample("/v2/models/satellite"),
    ("GET", "/v2/models/{domain}/ready"): Sample("/v2/models/satellite/ready"),
    ("POST", "/v2/models/{domain}/infer"): Sample("/v2/models/satellite/infer", json=_INFERENCE),
    ("GET", "/v2/models/{domain}/versions/{version}"): Sample("/v2/models/satellite/versions/1"),
    ("GET", "/v2/models/{domain}/versions/{version}/ready"): Sample("/v2/models/satellite/versions/1/ready"),
    ("POST", "/v2/models/{domain}/versions/{version}/infer"): Sample(
        "/v2/models/satellite/versions/1/infer", json=_INFERENCE
    ),
}
"""By method and path. The demo domains of `caspl serve --demo` support them in this order."""


def code_samples(method: str, sample: Sample) -> list[dict[str, str]]:
    """The call in three languages, as values of the OpenAPI extension `x-codeSamples`."""
    languages = {"Shell": _curl(method, sample), "Python": _python(method, sample), "JavaScript": _js(method, sample)}
    return [{"lang": language, "source": source} for language, source in languages.items()]


def _curl(method: str, sample: Sample) -> str:
    parts = ["curl --fail-with-body"]
    has_body = sample.file or sample.json or sample.form
    if method != ("POST" if has_body else "GET"):
        parts.append(f"-X {method}")
    if sample.file:
        parts.append(f"-H 'Content-Type: {sample.media_type}' --data-binary @{sample.file}")
    elif sample.json:
        parts.append(f"-H 'Content-Type: application/json' -d '{sample.json}'")
    parts += [f"-F '{field}=@{file}'" for field, file in sample.form.items()]
    if sample.saved_as:
        parts.append(f"-o {sample.saved_as}")
    return " ".join([*parts, f"'{URL}{sample.path}'"])


def _python(method: str, sample: Sample) -> str:
    arguments, lines = [f'"{method}"', f'"{URL}{sample.path}"'], ["import httpx", ""]
    if sample.file or sample.form or sample.saved_as:
        lines.insert(0, "from pathlib import Path\n")
    if sample.file:
        arguments.append(f'content=Path("{sample.file}").read_bytes()')
        arguments.append(f'headers={{"Content-Type": "{sample.media_type}"}}')
    elif sample.json:
        arguments.append(f"json={json.loads(sample.json)!r}")
    elif sample.form:
        files = ", ".join(f'"{field}": Path("{file}").read_bytes()' for field, file in sample.form.items())
        arguments.append(f"files={{{files}}}")
    lines += [_call("response = httpx.request(", [*arguments, "timeout=60"], ")"), "response.raise_for_status()"]
    if sample.saved_as:
        lines.append(f'Path("{sample.saved_as}").write_bytes(response.content)')
    elif sample.has_content:
        lines.append("print(response.json())")
    return "\n".join(lines)


def _call(begin: str, arguments: Sequence[str], end: str) -> str:
    return "\n".join([begin, *(f"    {argument}," for argument in arguments), end])


def _js(method: str, sample: Sample) -> str:
    lines, options, imported = [], [f'method: "{method}"'], []
    if sample.file:
        imported.append("readFile")
        options += [f'headers: {{ "Content-Type": "{sample.media_type}" }}', f'body: await readFile("{sample.file}")']
    elif sample.json:
        options += ['headers: { "Content-Type": "application/json" }', f"body: JSON.stringify({sample.json})"]
    elif sample.form:
        imported.append("readFile")
        lines.append("const form = new FormData();")
        for field, file in sample.form.items():
            lines.append(f'form.append("{field}", new Blob([await readFile("{file}")]), "{file}");')
        options.append("body: form")
    lines += [
        _call(f'const response = await fetch("{URL}{sample.path}", {{', options, "});"),
        "if (!response.ok) throw new Error(await response.text());",
    ]
    if sample.saved_as:
        imported.append("writeFile")
        lines.append(f'await writeFile("{sample.saved_as}", Buffer.from(await response.arrayBuffer()));')
    elif sample.has_content:
        lines.append("console.log(await response.json());")
    if imported:
        lines.insert(0, f'import {{ {", ".join(imported)} }} from "node:fs/promises";\n')
    return "\n".join(lines)


class Application(FastAPI):
    """FastAPI without its documentation pages, and with keys and examples in the OpenAPI document."""

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
                if sample := SAMPLES.get((method.upper(), path)):
                    operation["x-codeSamples"] = code_samples(method.upper(), sample)
        return document
