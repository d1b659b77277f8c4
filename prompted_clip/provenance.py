"""The provenance that bundles made here record."""

import datetime
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from prompt_store.manifest import Provenance


def new_provenance(
    *,
    method: str,
    phase: Literal["plain", "boost", "adapt"],
    recipe: Mapping[str, Any],
    data_digests: Mapping[str, str],
    metrics: Mapping[str, Any],
    teacher: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Provenance:
    """Provenance with the version of this code and the current time."""
    return Provenance(
        method=method,
        phase=phase,
        recipe=dict(recipe),
        data_digests=dict(data_digests),
        teacher=None if teacher is None else dict(teacher),
        seed=seed,
        metrics=dict(metrics),
        code_version=_code_version(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _code_version() -> str:
    try:
        return version("caspl-serve")
    except PackageNotFoundError:
        return "unknown"
