"""Answers of a server under load, and the figures computed from them: rates, latencies, refusals, mixed versions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.bundles import source_of
from benchmarks.errors import BenchError

OK = 200
REFUSALS = frozenset({429, 503})
EXPIRED = 504


@dataclass(frozen=True)
class Answer:
    """The end of one request. Times are readings of the monotonic clock in seconds; status 0 is a failed connection.

    Attributes:
        requested: domain of the request; `domain`, `version` and `digest` are those of the answer.
        n_errors: images of the request with an error instead of predictions.
        server_ms: the answer's own timing, milliseconds by stage.
    """

    due_s: float
    sent_s: float
    done_s: float
    status: int
    requested: str
    domain: str = ""
    version: int = 0
    digest: str = ""
    labels: tuple[str, ...] = ()
    n_errors: int = 0
    server_ms: dict[str, float] = field(default_factory=dict)
    retry_after: str = ""
    n_images: int = 1

    @property
    def latency_s(self) -> float:
        """From due to done."""
        return self.done_s - self.due_s

    @property
    def is_good(self) -> bool:
        """Whether every image was answered."""
        return self.status == OK and not self.n_errors

    @property
    def is_expired(self) -> bool:
        """Whether the server accepted the request and then missed its deadline."""
        return self.status == EXPIRED

    @property
    def is_refused(self) -> bool:
        """Whether the server refused the request as overloaded."""
        return self.status in REFUSALS


@dataclass(frozen=True)
class Swap:
    """An activation of a domain's version: requested at `requested_s`, confirmed at `done_s`."""

    domain: str
    version: int
    requested_s: float
    done_s: float


@dataclass(frozen=True)
class Summary:
    """Figures of one phase of load; rates are images per second, goodput counts images within the objective."""

    n_requests: int
    n_refused: int
    n_expired: int
    n_failed: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    refusal_p99_ms: float
    n_refused_without_retry_after: int
    goodput_per_s: float


def is_mixed(answer: Answer, digests: Mapping[tuple[str, int], str]) -> bool:
    """Whether an answer combines several versions or domains.

    Args:
        answer: an answered request, with labels of `benchmarks.bundles`.
        digests: of all versions in the store, by domain and version.
    """
    source = (answer.domain, answer.version)
    if answer.domain != answer.requested or digests.get(source) != answer.digest:
        return True
    return any(source_of(label) != source for label in answer.labels)


def is_stale(answer: Answer, swaps: Sequence[Swap]) -> bool:
    """Whether the answer's version was live at no moment of the request.

    Args:
        answer: an answered request.
        swaps: of all domains, in order; a domain's first one is the version that was live at the start.
    """
    own = [swap for swap in swaps if swap.domain == answer.domain]
    ends_s = [swap.done_s for swap in own[1:]] + [math.inf]
    live = {
        swap.version
        for swap, end_s in zip(own, ends_s, strict=False)
        if swap.requested_s <= answer.done_s and end_s >= answer.sent_s
    }
    return bool(own) and answer.version not in live


def percentile_ms(values_s: Sequence[float], percent: float) -> float:
    """A percentile in milliseconds; NaN without values."""
    return float(np.percentile(values_s, percent)) * 1000 if values_s else math.nan


def summarize(answers: Sequence[Answer], *, duration_s: float, slo_s: float = math.inf) -> Summary:
    """Figures of all requests that were due in a phase.

    Args:
        answers: of all of them.
        duration_s: length of the phase.
        slo_s: objective for the latency.
    """
    good = [answer for answer in answers if answer.is_good]
    refused = [answer for answer in answers if answer.is_refused]
    n_expired = sum(answer.is_expired for answer in answers)
    p50_ms, p90_ms, p99_ms = (percentile_ms([one.latency_s for one in good], percent) for percent in (50, 90, 99))
    return Summary(
        n_requests=len(answers),
        n_refused=len(refused),
        n_expired=n_expired,
        n_failed=len(answers) - len(good) - len(refused) - n_expired,
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        refusal_p99_ms=percentile_ms([answer.done_s - answer.sent_s for answer in refused], 99),
        n_refused_without_retry_after=sum(not answer.retry_after.isdecimal() for answer in refused),
        goodput_per_s=sum(answer.n_images for answer in good if answer.latency_s <= slo_s) / duration_s,
    )


def closed_loop_rate(answers: Sequence[Answer]) -> float:
    """Images per second of a closed loop from its start until its last request was sent.

    After that, clients that have stopped leave the server to the others.

    Raises:
        BenchError: the loop was too short.
    """
    good = [answer for answer in answers if answer.is_good]
    begin_s = min((answer.sent_s for answer in answers), default=0.0)
    end_s = max((answer.sent_s for answer in answers), default=0.0)
    if not any(answer.done_s <= end_s for answer in good):
        statuses = sorted({answer.status for answer in answers})
        msg = f"No client got an answer and sent again (statuses {statuses}): take more --seconds."
        raise BenchError(msg)
    return images_between(good, begin_s, end_s) / (end_s - begin_s)


def images_between(answers: Iterable[Answer], begin_s: float, end_s: float) -> float:
    """Images answered in a span of time; a request that crosses its edge counts with the share inside."""
    return sum(
        one.n_images * max(0.0, min(one.done_s, end_s) - max(one.sent_s, begin_s)) / (one.done_s - one.sent_s)
        for one in answers
    )


def recovery_s(answers: Iterable[Answer], *, fell_at_s: float, slo_s: float) -> float:
    """Seconds from the fall of the load to the last request due that was refused, failed or late; 0 without one."""
    bad = [one.due_s for one in answers if one.due_s >= fell_at_s and not (one.is_good and one.latency_s <= slo_s)]
    return max(bad) - fell_at_s if bad else 0.0
