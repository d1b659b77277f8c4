"""The settings from command-line options and `CASPL_*` variables; unknown variables are rejected."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from prompt_store.validation import plain_message
from prompted_clip.errors import did_you_mean
from service.errors import SettingsError
from service.settings import LINK_VALUE, PREFIX, Settings

CLIENT_VARIABLES: Final = frozenset({"CASPL_URL", "CASPL_API_KEY"})
"""Used by `caspl classify`, so they are allowed in the server's environment as well."""
LINK_NAME: Final = re.compile(
    r"(?:\w+_)?(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""Names that Kubernetes sets in every container for a service named `caspl` or `caspl-...`; they are ignored."""


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Reject unknown CASPL_* variables, so that typos are not silently ignored.

    Variables that Kubernetes sets for a service named `caspl*` are skipped.

    Raises:
        SettingsError: lists all unknown variables.
    """
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    unknown = sorted(
        name
        for name, value in environment.items()
        if name.upper().startswith(PREFIX) and name.upper() not in known and not _is_service_link(name, value)
    )
    if unknown:
        near = "".join(did_you_mean(name, known) for name in unknown)
        raise SettingsError(
            f"Unknown environment variables: {', '.join(unknown)}.{near} docs/configuration.md lists all.",
            code="unknown_variable",
        )


def load_settings(**given: object) -> Settings:
    """Build the settings from the environment and the given options; None means not given.

    Raises:
        SettingsError: an unknown variable or an invalid value.
    """
    refuse_unknown(os.environ)
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**chosen)  # type: ignore[arg-type]
    except ValueError as error:
        problems = map(_explain, error.errors()) if isinstance(error, ValidationError) else [str(error)]
        raise SettingsError(f"Invalid settings: {'; '.join(problems)}.") from error


def _explain(problem: Mapping[str, Any]) -> str:
    """One problem in one line: pydantic's own text has several."""
    name, text = ".".join(map(str, problem["loc"])), plain_message(problem["msg"])
    return f"{name}: {text}, found {problem['input']!r}" if name else text


def _is_service_link(name: str, value: str) -> bool:
    rest = name.upper().removeprefix(PREFIX)
    return bool(LINK_NAME.fullmatch(rest) or (rest.endswith("_PORT") and LINK_VALUE.match(value)))
