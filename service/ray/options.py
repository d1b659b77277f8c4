"""Options of `caspl serve --ray`; imports neither Ray nor torch."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from service.errors import ServiceError, SettingsError


class RayError(ServiceError, code="ray_failed"):
    """Ray could not be started, or the replicas could not."""


class RayOptions(NamedTuple):
    """Options of `caspl serve --ray`.

    Args:
        replicas: a fixed number of replicas.
        autoscale: `MIN:MAX`, instead.
        route_by: see `Layout`.
    """

    replicas: int | None
    autoscale: str | None
    route_by: Literal["load", "domain"]

    def bounds(self) -> tuple[int, int]:
        """The minimum and the maximum number of replicas.

        Raises:
            SettingsError: both options were given, or not two numbers in order.
        """
        if self.autoscale is None:
            return self.replicas or 1, self.replicas or 1
        if self.replicas is not None:
            raise SettingsError("--replicas and --autoscale exclude each other.")
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", self.autoscale)
        least, most = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= least <= most:
            raise SettingsError(f"--autoscale: expected MIN:MAX with 1 <= MIN <= MAX, found {self.autoscale!r}.")
        return least, most
