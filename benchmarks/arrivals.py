"""When requests arrive and whom they ask: open-loop schedules and power-law popularity.

Gamma gaps with a coefficient of variation, and domains by a power law of their rank, as S-LoRA (arXiv 2311.03285)
measures servers of many adapters. An open loop sends when the schedule says, whether or not earlier answers are back.
"""

import numpy as np
from numpy.typing import NDArray


def arrival_times(rate_per_s: float, duration_s: float, *, cv: float = 1.0, seed: int = 0) -> NDArray[np.float64]:
    """Seconds at which requests are due, from 0 to `duration_s`.

    Args:
        rate_per_s: mean of arrivals per second.
        duration_s: length of the schedule.
        cv: coefficient of variation of the gaps; 1 is a Poisson process, 4 comes in bursts, 0 is a metronome.
        seed: the same schedule for the same seed.

    Raises:
        ValueError: a rate or a duration that is not positive, or a negative cv.
    """
    if rate_per_s <= 0 or duration_s <= 0 or cv < 0:
        msg = f"Arrivals need a positive rate and duration and cv >= 0; got {rate_per_s}, {duration_s} and {cv}."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    times = np.empty(0)
    last_s = 0.0
    while last_s < duration_s:
        n_more = max(16, int(rate_per_s * (duration_s - last_s) * 1.2))
        gaps = rng.gamma(1 / cv**2, cv**2 / rate_per_s, n_more) if cv else np.full(n_more, 1 / rate_per_s)
        times = np.concatenate([times, last_s + np.cumsum(gaps)])
        last_s = float(times[-1])
    return times[times < duration_s]


def popularity(n_domains: int, alpha: float) -> NDArray[np.float64]:
    """How likely each domain is, most popular first: proportional to rank ** -alpha; 0 makes all alike."""
    weights = np.arange(1, n_domains + 1, dtype=np.float64) ** -alpha
    return np.asarray(weights / weights.sum())


def draw_domains(n_domains: int, n_draws: int, *, alpha: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which domain each of some requests asks: indices into a list whose first is the most popular."""
    return rng.choice(n_domains, size=n_draws, p=popularity(n_domains, alpha))
