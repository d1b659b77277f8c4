"""Classify images with prompted CLIP models, in this process (`Classifier`) or through a server (`Client`).

Importing the package loads neither torch nor httpx; the classes do.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from caspl import errors
    from caspl.classifier import Classifier
    from caspl.client import AsyncClient, Client
    from caspl.errors import CasplError
    from caspl.results import AddedExample, Classification, Domain, Example, Fit, Prediction, Rollout, Version

    __version__: str

__all__ = [
    "AddedExample",
    "AsyncClient",
    "CasplError",
    "Classification",
    "Classifier",
    "Client",
    "Domain",
    "Example",
    "Fit",
    "Prediction",
    "Rollout",
    "Version",
    "__version__",
    "errors",
]

_MODULES: Final = {
    "AddedExample": "results",
    "AsyncClient": "client",
    "CasplError": "errors",
    "Classification": "results",
    "Classifier": "classifier",
    "Client": "client",
    "Domain": "results",
    "Example": "results",
    "Fit": "results",
    "Prediction": "results",
    "Rollout": "results",
    "Version": "results",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__version__":
        return version("caspl-serve")
    if name in _MODULES:
        return getattr(import_module(f"caspl.{_MODULES[name]}"), name)
    if name == "errors":
        return import_module("caspl.errors")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
