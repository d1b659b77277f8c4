"""Domains side by side: one process each, one thread each.

The demo models are so small that a second thread mostly waits for the first; a second domain does not.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch
from rich.console import Console

from training.progress import progress_bars

T = TypeVar("T")


def default_jobs() -> int:
    """As many as there are cores."""
    return os.cpu_count() or 1


def map_domains(
    work: Callable[[str], T], domains: Sequence[str], *, jobs: int, title: str, console: Console
) -> Iterator[tuple[str, T]]:
    """Do the work for every domain, in the order they finish.

    Args:
        work: from a domain's name to its result; a function or partial that can be pickled.
        domains: their names.
        jobs: domains at the same time.
        title: what the bar says.
        console: where it is shown.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        progress_bars(console) as progress,
    ):
        task = progress.add_task(title, total=len(domains), note="")
        running = {pool.submit(work, domain): domain for domain in domains}
        for future in as_completed(running):
            yield running[future], future.result()
            progress.advance(task)
            progress.console.print(f"{title}: {running[future]} done", highlight=False)
