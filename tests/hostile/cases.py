"""One hostile input and the answers that are right for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A file or a request.

    Attributes:
        name: family and number; unique in its corpus.
        data: the bytes to send.
        status: expected HTTP status.
        codes: expected problem codes; two where the position of a cut decides which check fails. Empty for a success,
            and for a refusal by the protocol, which is plain text.
    """

    name: str
    data: bytes
    status: int
    codes: frozenset[str] = frozenset()


def refused(family, files, status, *codes):
    """Cases of one family, numbered."""
    return [Case(f"{family} {number}", data, status, frozenset(codes)) for number, data in enumerate(files)]


def sample(cases, n, rng):
    """`n` cases, at least one of each family."""
    families = {}
    for case in cases:
        families.setdefault(case.name.rpartition(" ")[0], []).append(case)
    chosen = [rng.choice(members) for members in families.values()]
    rest = [case for case in cases if case not in chosen]
    return chosen + rng.sample(rest, max(0, min(n, len(cases)) - len(chosen)))
