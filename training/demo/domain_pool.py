"""Processes domains in parallel, one single-threaded process each.

The demo models are too small to benefit from several threads.
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
    """The number of cores."""
    return os.cpu_count() or 1


def map_domains(
    work: Callable[[str], T], domains: Sequence[str], *, jobs: int, title: str, console: Console
) -> Iterator[tuple[str, T]]:
    """Call `work` for every domain in a process pool; yields results as they finish.

    Args:
        work: maps a domain's name to its result; must be picklable.
        domains: names of the domains.
        jobs: number of parallel processes.
        title: title of the progress bar.
        console: shows progress.
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
