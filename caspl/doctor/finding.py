"""Results of checks."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Whether something works: `ok`, works with a limitation (`warning`), or does not (`problem`)."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of the check.
        status: its status.
        detail: the facts.
        advice: a command to type, or a setting to change; empty if the status is `ok`.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def ok(name: str, detail: str) -> Finding:
    """A check that passed."""
    return Finding(name, Status.OK, detail)


def warning(name: str, detail: str, advice: str) -> Finding:
    """A check that found a limitation."""
    return Finding(name, Status.WARNING, detail, advice)


def problem(name: str, detail: str, advice: str) -> Finding:
    """A check that failed."""
    return Finding(name, Status.PROBLEM, detail, advice)
