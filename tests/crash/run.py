"""Interrupts everything that writes, for a bounded time, and publishes how many interruptions lost something.

make crash SECONDS=300
"""

import argparse
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import Report, Table, Target
from tests.crash import matrix
from tests.crash.forked import Forker
from tests.crash.traced import tracing_problem
from tests.crash.workloads import WORKLOADS
from tests.results import publish

MEMORY = Path("/dev/shm")  # noqa: S108  only the parent of a private directory
NONE = Target("<=", 0)
N_FLIPS = 1_000
FAULTS = {"killed": (matrix.KILL,), "errors": matrix.ERRORS, "power": (matrix.KILL,)}
RANDOM = 0.05
SHARES = {"killed": 0.27, "power": 0.27, "errors": 0.95}
"""Of the time that remains when a kind begins, so that one which ends early leaves its time to those after it."""


@contextmanager
def fast_folder():
    """A directory in memory, where a sync takes no time; whether data is synced does not depend on that."""
    parent = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="caspl-crash-", dir=parent) as name:
        yield Path(name)


def interrupt_everything(seconds, seed, log):
    """Outcomes by kind of interruption and workload."""
    outcomes = {}
    ends_s = time.monotonic() + seconds
    with fast_folder() as folder, Forker() as forker:

        def until_s(share):
            now_s = time.monotonic()
            return now_s + share * (ends_s - now_s)

        recorded = {name: matrix.record(forker, name, folder) for name in WORKLOADS}
        outcomes["random", "store, examples"] = matrix.kill_at_random(
            forker, folder, until_s=until_s(RANDOM), seed=seed
        )
        for kind, share in SHARES.items():
            left = shares(recorded, folder, kind)
            kind_ends_s = until_s(share)
            while left:
                name, weight = left.popitem()
                part = weight / (weight + sum(left.values()))
                options = {"recorded": recorded[name], "seed": seed}
                options["until_s"] = time.monotonic() + part * (kind_ends_s - time.monotonic())
                if kind == "power":
                    outcome = matrix.cut_power(name, folder, **options)
                else:
                    outcome = matrix.inject_faults(forker, name, folder, FAULTS[kind], **options)
                outcomes[kind, name] = outcome
                log(f"{kind}, {name}: {outcome.n_tried} of {outcome.n_possible}, {len(outcome.problems)} problems")
        outcomes["flipped", "store"] = matrix.flip_bits(folder, N_FLIPS, seed)
        outcomes["flipped", "examples"] = matrix.flip_example_bits(folder, N_FLIPS, seed)
    return outcomes


def shares(recorded, folder, kind):
    """How much of the time each workload gets: as much as it has calls."""
    sizes = {
        name: len(matrix.injections(whole.calls, folder / f"{name}-whole", FAULTS[kind]))
        for name, (whole, _) in recorded.items()
    }
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


MEANINGS = {
    "killed": "of {n:,} runs killed at a system call: confirmed changes lost, partial ones visible, no further change",
    "errors": "of {n:,} runs with EIO or ENOSPC: the same, unexpected errors, or temporary files left",
    "power": "of {n:,} states of the disk after a power failure: confirmed changes lost, partial ones visible",
    "random": "of {n:,} writers killed at random moments, with {confirmed:,} confirmed changes: changes lost",
    "flipped": "of {n:,} bits flipped in a store and its examples: other content was read, or the check found nothing "
    "in a damaged file of the store or in refused examples",
}


def summarize(report, outcomes):
    for kind, meaning in MEANINGS.items():
        some = [outcome for (found, _), outcome in outcomes.items() if found == kind]
        n_confirmed = sum(outcome.counts.get("confirmed", 0) for outcome in some)
        text = meaning.format(n=sum(outcome.n_tried for outcome in some), confirmed=n_confirmed)
        report.add(f"crash_{kind}", sum(len(outcome.problems) for outcome in some), text, NONE)
    rows = [
        (kind, name, outcome.n_tried, outcome.n_possible or "", len(outcome.problems),
         ", ".join(f"{n} {what}" for what, n in outcome.counts.items()))
        for (kind, name), outcome in outcomes.items()
    ]  # fmt: skip
    report.tables["By kind and workload"] = Table(("kind", "workload", "tried", "possible", "problems", ""), rows)
    report.samples = {"problems": [problem for outcome in outcomes.values() for problem in outcome.problems]}
    report.notes += [
        "Power failures are simulated: the system calls of a run are replayed on a model of a file system that keeps "
        "any part of what was not synced, in any combination. A disk that only claims to sync can lose data.",
        "Bits of the database of examples are flipped anywhere in its file. What is compared: labels, features, "
        "thumbnails and pictures; a date, a margin or a file name that changed is not detected.",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/crash"))
    words = parser.parse_args()
    if reason := tracing_problem():
        sys.exit(f"The crash tests need strace: {reason}.")
    report = Report("crash", {"seconds": words.seconds, "seed": words.seed})
    summarize(report, interrupt_everything(words.seconds, words.seed, lambda line: sys.stderr.write(line + "\n")))
    for problem in report.samples["problems"]:
        sys.stderr.write(problem + "\n")
    return publish(report, words.out, f"make crash SECONDS={words.seconds:g}")


if __name__ == "__main__":
    sys.exit(main())
