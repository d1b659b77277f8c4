"""Every route with the scope that it requires: the only routes that are served.

The table also gives a path's allowed methods, the route's name in logs and metrics, and the security requirements in
the OpenAPI document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

Granted = Literal["classify", "publish", "activate", "rollback", "teach", "metrics"]
Scope = Granted | Literal["any", "none"]
"""The scope that a route requires; `any` accepts every valid key, `none` requires no key."""

SCOPES: Final[tuple[str, ...]] = get_args(Granted)

RULES: Final[Mapping[str, Mapping[str, Scope]]] = {
    "/classify/{domain}": {"POST": "classify"},
    "/classify": {"POST": "classify"},  # the route checks each image's domain
    "/domains": {"GET": "any"},
    "/domains/{domain}": {"GET": "any", "PUT": "publish"},  # the route requires the scope `activate` as well
    "/domains/{domain}/versions": {"GET": "any", "POST": "publish"},
    "/domains/{domain}/versions/{version}": {"GET": "any", "DELETE": "publish"},
    "/domains/{domain}/versions/{version}/content": {"GET": "publish"},
    "/domains/{domain}/live": {"PUT": "activate"},
    "/domains/{domain}/rollback": {"POST": "rollback"},
    "/domains/{domain}/rollout": {"GET": "any", "POST": "activate", "DELETE": "activate"},
    "/domains/{domain}/history": {"GET": "any"},
    "/domains/{domain}/examples": {"GET": "teach", "POST": "teach", "PATCH": "teach", "DELETE": "teach"},
    "/domains/{domain}/examples/groups": {"GET": "teach"},
    "/domains/{domain}/examples/{example}": {"DELETE": "teach"},
    "/domains/{domain}/examples/{example}/thumbnail": {"GET": "teach"},
    "/domains/{domain}/fit": {"GET": "teach", "POST": "teach"},
    "/v1/embeddings": {"POST": "classify"},  # the route checks the domain
    # The Open Inference Protocol; a domain is a model.
    "/v2": {"GET": "any"},
    "/v2/health/live": {"GET": "none"},
    "/v2/health/ready": {"GET": "none"},
    "/v2/models/{domain}": {"GET": "any"},
    "/v2/models/{domain}/ready": {"GET": "any"},
    "/v2/models/{domain}/infer": {"POST": "classify"},
    "/v2/models/{domain}/versions/{version}": {"GET": "any"},
    "/v2/models/{domain}/versions/{version}/ready": {"GET": "any"},
    "/v2/models/{domain}/versions/{version}/infer": {"POST": "classify"},
    "/metrics": {"GET": "metrics"},
    "/info": {"GET": "any"},
    # Probes, and pages without data: the page and the documentation send the key that is entered in them.
    "/livez": {"GET": "none"},
    "/readyz": {"GET": "none"},
    "/": {"GET": "none"},
    "/docs": {"GET": "none"},
    "/openapi.json": {"GET": "none"},
    "/assets/{name}": {"GET": "none"},
}
"""Path template -> method -> scope. HEAD is allowed where GET is, OPTIONS everywhere."""


class Endpoint(NamedTuple):
    """The entry of a path in `RULES`.

    Args:
        template: such as `/domains/{domain}`.
        scopes: required scope by method.
        domain: the domain in the path, not validated; None if the template has none.
    """

    template: str
    scopes: Mapping[str, Scope]
    domain: str | None

    @property
    def allow(self) -> str:
        """The value of the `Allow` header."""
        return ", ".join(sorted({*self.scopes, "OPTIONS"} | ({"HEAD"} if "GET" in self.scopes else set())))


UNMATCHED: Final = Endpoint("unmatched", {}, None)
"""For a path without a route."""


def find_endpoint(path: str) -> Endpoint:
    """The endpoint of a path without root path."""
    for template, pattern in PATTERNS:
        if match := pattern.fullmatch(path):
            return Endpoint(template, RULES[template], match.groupdict().get("domain"))
    return UNMATCHED


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # literal text and parameter names take turns
    return re.compile("".join(f"(?P<{part}>[^/]+)" if n % 2 else re.escape(part) for n, part in enumerate(parts)))


PATTERNS: Final = tuple((template, _pattern(template)) for template in RULES)
