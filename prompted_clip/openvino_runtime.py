"""The optional package `openvino`, imported without its usage statistics."""

import importlib
import sys
from typing import Any


def import_openvino() -> Any:  # noqa: ANN401  the library has no types
    """The module `openvino`.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    # Importing it would write an identifier to the home folder and send an event to Google Analytics. Without this
    # package it uses its own stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")
