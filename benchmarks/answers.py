"""What came back from a server under load, and what it says: times, refusals, and answers that should not be.

A latency counts from the moment a request was *due*, not from when a busy client got round to sending it: a server that
stalls cannot hide the requests that it kept from being sent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.errors import BenchError
from benchmarks.tags import source_of

OK = 200
REFUSALS = frozenset({429, 503})
EXPIRED = 504
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Answer:
    """One request's end; times are readings of the machine's monotonic clock, in seconds.

    Attributes:
        due_s: when it should have been sent.
        sent_s: when it was.
        done_s: when the last byte of the answer was there.
        status: of HTTP; 0 when there was no answer.
        asked: the domain it asked.
        domain: the domain the answer names; empty without one.
        version: likewise; 0 without one.
        digest: likewise.
        labels: what was predicted.
        retry_after: the header, empty without one.
        n_images: in the request.
        ran_s: for how long its batch ran, if the answer says it.
    """

    due_s: float
    sent_s: float
    done_s: float
    status: int
    asked: str
    domain: str = ""
    version: int = 0
    digest: str = ""
    labels: tuple[str, ...] = ()
    retry_after: str = ""
    n_images: int = 1
    ran_s: float | None = None

    @property
    def latency_s(self) -> float:
        """From due to done."""
        return self.done_s - self.due_s

    @property
    def is_good(self) -> bool:
        """Whether it was answered."""
        return self.status == OK

    @property
    def is_expired(self) -> bool:
        """Whether the server took it and then found that its time had passed."""
        return self.status == EXPIRED

    @property
    def is_refused(self) -> bool:
        """Whether the server said that it has too much to do."""
        return self.status in REFUSALS


@dataclass(frozen=True)
class Change:
    """A version of a domain went live: asked for at `asked_s`, confirmed at `done_s`."""

    domain: str
    version: int
    asked_s: float
    done_s: float


@dataclass(frozen=True)
class Summary:
    """A phase of load in numbers; milliseconds, and requests or images per second.

    Attributes:
        percentiles_ms: of answered requests, from when they were due; keys `p50`, `p90`, `p99`, `p99.9`.
        goodput_per_s: images answered within the objective, per second of the phase.
    """

    n_requests: int
    n_answered: int
    n_refused: int
    n_expired: int
    n_failed: int
    percentiles_ms: dict[str, float]
    refusal_p99_ms: float
    n_refused_without_retry_after: int
    offered_per_s: float
    answered_per_s: float
    goodput_per_s: float


def is_torn(answer: Answer, digests: Mapping[tuple[str, int], str]) -> bool:
    """Whether an answer was put together from more than one version, or from another domain's.

    Args:
        answer: an answered request, with labels made by `benchmarks.tags`.
        digests: what the store holds, by domain and version.
    """
    source = (answer.domain, answer.version)
    if answer.domain != answer.asked or digests.get(source) != answer.digest:
        return True
    return any(source_of(label) != source for label in answer.labels)


def is_stale(answer: Answer, changes: Sequence[Change]) -> bool:
    """Whether the answer's version was no longer, or not yet, live at any moment of the request.

    Args:
        answer: an answered request.
        changes: of its domain, in order; the first one is what was live from the start. A domain without changes has
            nothing to be stale about.
    """
    own = [change for change in changes if change.domain == answer.domain]
    if not own:
        return False
    ends_s = [change.done_s for change in own[1:]] + [math.inf]
    allowed = {
        change.version
        for change, end_s in zip(own, ends_s, strict=True)
        if change.asked_s <= answer.done_s and end_s >= answer.sent_s
    }
    return answer.version not in allowed


def percentile_ms(values_s: Sequence[float], percent: float) -> float:
    """A percentile in milliseconds; nan when there are no values."""
    return float(np.percentile(values_s, percent)) * 1000 if len(values_s) else math.nan


def summarize(answers: Sequence[Answer], *, duration_s: float, slo_s: float) -> Summary:
    """Numbers of one phase.

    Args:
        answers: of all requests that were due in it.
        duration_s: its length.
        slo_s: an answer that takes longer is no good any more.
    """
    good = [answer for answer in answers if answer.is_good]
    refused = [answer for answer in answers if answer.is_refused]
    latencies_s = [answer.latency_s for answer in good]
    n_expired = sum(answer.is_expired for answer in answers)
    return Summary(
        n_requests=len(answers),
        n_answered=len(good),
        n_refused=len(refused),
        n_expired=n_expired,
        n_failed=len(answers) - len(good) - len(refused) - n_expired,
        percentiles_ms={f"p{percent:g}": percentile_ms(latencies_s, percent) for percent in PERCENTILES},
        refusal_p99_ms=percentile_ms([answer.done_s - answer.sent_s for answer in refused], 99),
        n_refused_without_retry_after=sum(not answer.retry_after.isdecimal() for answer in refused),
        offered_per_s=_images(answers) / duration_s,
        answered_per_s=_images(good) / duration_s,
        goodput_per_s=_images(answer for answer in good if answer.latency_s <= slo_s) / duration_s,
    )


def busy_rate(answers: Sequence[Answer]) -> float:
    """Images answered per second of a closed loop while all of its clients were there.

    At the end some clients have stopped, and the rest have the service to themselves: what counts is the time until the
    last request was sent.

    Args:
        answers: of the whole loop, in which every client sent as soon as its last answer was back.

    Raises:
        BenchError: no client was answered and sent again.
    """
    good = [answer for answer in answers if answer.is_good]
    begin_s = min((answer.sent_s for answer in answers), default=0.0)
    end_s = max((answer.sent_s for answer in answers), default=0.0)
    if not any(answer.done_s <= end_s for answer in good):
        msg = "No client was answered and asked again: the time was too short for a rate. Take more --seconds."
        raise BenchError(msg)
    return images_between(good, begin_s, end_s) / (end_s - begin_s)


def images_between(answers: Iterable[Answer], begin_s: float, end_s: float) -> float:
    """Images on which a server worked between two moments.

    Answers come in groups, so that it matters where a stretch of time is cut: an image whose batch ran across a cut
    counts with the part of it that lies inside. Where the answer does not say how long that was, waiting counts too;
    and so it does for several images in a request, which are worked on in one batch after the other, not all in the
    last.
    """
    n_images = 0.0
    for one in answers:
        began_s = one.done_s - one.ran_s if one.ran_s and one.n_images == 1 else one.sent_s
        inside_s = max(0.0, min(one.done_s, end_s) - max(began_s, begin_s))
        n_images += one.n_images * inside_s / (one.done_s - began_s)
    return n_images


def recovery_s(answers: Iterable[Answer], *, fell_at_s: float, slo_s: float) -> float:
    """Seconds after the load fell until every request that is due is answered within the objective.

    Args:
        answers: of a run whose load fell at `fell_at_s`.
        fell_at_s: reading of the monotonic clock.
        slo_s: the objective.

    Returns:
        How long after the fall the last request was due that was refused, failed or late; 0 when none was.
    """
    bad = [one.due_s for one in answers if one.due_s >= fell_at_s and not (one.is_good and one.latency_s <= slo_s)]
    return max(bad) - fell_at_s if bad else 0.0


def _images(answers: Iterable[Answer]) -> int:
    return sum(answer.n_images for answer in answers)
