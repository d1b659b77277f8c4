"""Exceptions on the wire: every class of the problem table survives the trip with its message and its facts.

An exception is sent as its class's name, its message and its attributes, and built again without its constructor, so
that no class needs code of its own here. What is not in the table is a bug: it is logged where it happened, and the
other side learns only that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from service.errors import ServiceError
from service.http.problems import INTERNAL_DETAIL, TABLE
from service.workers.wire import WireError

logger = logging.getLogger(__name__)

KINDS: Final[Mapping[str, type[Exception]]] = {kind.__name__: kind for kind in TABLE}
INTERNAL: Final = "internal"


def to_wire(error: BaseException) -> WireError:
    """The error as data; one without a row in the problem table is logged, and its text stays here."""
    kind = next((kind for kind in type(error).__mro__ if KINDS.get(kind.__name__) is kind), None)
    if kind is None:
        logger.error("call.failed", exc_info=error)
        return WireError(ServiceError.__name__, INTERNAL_DETAIL, {"code": INTERNAL, "extra": {}})
    return WireError(kind.__name__, str(error), vars(error))


def from_wire(sent: WireError) -> Exception:
    """The error again: same class, same message, same attributes."""
    kind = KINDS.get(sent.kind, ServiceError)
    error = kind.__new__(kind, sent.message)
    vars(error).update(sent.facts)
    return error
