"""`caspl bench fit`: time of a fit and its report, and of the report after one label has changed.

The service's process for fits computes both, on one core; the times include sending the features to it. The features
are random: one direction that all share, as CLIP's have, one direction per class, and noise.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import psutil
from rich.console import Console

from benchmarks.ratios import Spread
from benchmarks.report import Report, Target
from prompted_clip.features import Floats, Ints
from service.examples.fit_process import FitJob, FitProcess, FitResult, compute

SEED: Final = 0
SHARED, NOISE, TEXT_NOISE, LOGIT_SCALE = 1.5, 7.0, 1.5, 30.0
MAX_DIFFERENCE: Final = 1e-8
MAX_LOAD: Final = 0.5
"""Load average of a quiet machine."""


@dataclass(frozen=True)
class FitTimeOptions:
    """Options of the measurement: sizes of the fits, and how many labels change one after the other."""

    examples: Sequence[int] = (1280, 10_000)
    n_classes: int = 80
    width: int = 512
    rounds: int = 20


def random_job(n_examples: int, n_classes: int, width: int) -> FitJob:
    """A fit to random features, which the text features alone classify badly and a head moderately well."""
    rng = np.random.default_rng(SEED)
    centres_KE = rng.normal(size=(n_classes, width)) + SHARED * rng.normal(size=width)
    labels_N = np.arange(n_examples) % n_classes

    def unit(rows_NE: Floats) -> Floats:
        unit_NE: Floats = rows_NE / np.linalg.norm(rows_NE, axis=1, keepdims=True)
        return unit_NE

    noise_NE = NOISE * np.sqrt(width) * unit(rng.normal(size=(n_examples, width)) * rng.uniform(0.2, 5, width))
    return FitJob(
        features_NE=unit(centres_KE[labels_N] + noise_NE).astype(np.float32),
        labels_N=labels_N,
        unlabelled_ME=np.zeros((0, width), np.float32),
        text_KE=unit(centres_KE + TEXT_NOISE * rng.normal(size=centres_KE.shape)).astype(np.float32),
        logit_scale=LOGIT_SCALE,
        class_names=[f"class {index}" for index in range(n_classes)],
        method="auto",
    )


def with_label(job: FitJob, row: int, label: int) -> FitJob:
    """The same fit after one label has changed."""
    labels_N: Ints = job.labels_N.copy()
    labels_N[row] = label
    return FitJob(**{**vars(job), "labels_N": labels_N})


def difference(found: FitResult, expected: FitResult) -> float:
    """The largest difference of weights, biases and margins, relative to the largest value of each."""
    pairs = (
        (found.term.weight_KE, expected.term.weight_KE),
        (found.term.bias_K, expected.term.bias_K),
        (found.margins, expected.margins),
    )
    return max(float(np.abs(one - other).max() / (np.abs(other).max() or 1.0)) for one, other in pairs)


def measure(options: FitTimeOptions, console: Console) -> Report:
    """Measure all sizes."""
    report = Report("fit", asdict(options))
    load = psutil.getloadavg()[0]
    if load > MAX_LOAD:
        report.notes.append(
            f"The load average was {load:.1f} on {psutil.cpu_count()} CPUs: other processes delayed the fits, which "
            "have the lowest priority, and may have raised their CPU time, as CPUs can share a core."
        )
    rng = np.random.default_rng(SEED)
    for n_examples in options.examples:
        console.print(f"{n_examples} examples", highlight=False)
        job, process = random_job(n_examples, options.n_classes, options.width), FitProcess()
        try:
            process.run(random_job(64, 2, 8))  # starts the process
            started_s = _cpu_s()
            first_s, _ = _timed(process, job)
            before_s, taken_s, made = _cpu_s(), [], []
            for _ in range(options.rounds):
                job = with_label(job, int(rng.integers(n_examples)), int(rng.integers(options.n_classes)))
                one_s, found = _timed(process, job)
                taken_s.append(one_s)
                made.append((job, found))
            after_s = _cpu_s()
        finally:
            process.close()
        differences = [difference(found, compute(job)) for job, found in (made[0], made[-1])]
        size, is_first = f"{n_examples:,} x {options.n_classes} x {options.width}", n_examples == options.examples[0]
        what, one_core = f"fit and report, {size}", "CPU time of the same in the process of the fit, s"
        report.add(f"fit_{n_examples}_s", first_s, f"{what}, s")
        report.add(f"fit_{n_examples}_cpu_s", before_s - started_s, one_core, Target("<=", 1.0) if is_first else None)
        report.add(f"relabel_{n_examples}_s", Spread.of(taken_s), f"{what}, after one label has changed, s")
        cpu_s, target = (after_s - before_s) / options.rounds, Target("<=", 0.05) if is_first else None
        report.add(f"relabel_{n_examples}_cpu_s", cpu_s, one_core + ", mean", target)
        meaning = "largest relative difference of the same from a fit without anything prepared"
        report.add(f"difference_{n_examples}", max(differences), meaning, Target("<=", MAX_DIFFERENCE))
        report.samples[f"relabel_{n_examples}_s"] = taken_s
    return report


def _cpu_s() -> float:
    """CPU time of the processes that this one has started."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return float(sum(one.user + one.system for one in times))


def _timed(process: FitProcess, job: FitJob) -> tuple[float, FitResult]:
    began_s = time.perf_counter()
    result = process.run(job)
    return time.perf_counter() - began_s, result
