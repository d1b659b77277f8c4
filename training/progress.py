"""Progress as bars on a terminal and as lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_PER_LINE: Final = 10.0


class ProgressLines(Progress):
    """Prints a task's progress as one line at most every ten seconds, for log files and pipes."""

    def __init__(self, console: Console, get_time: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console=console, get_time=get_time, disable=True)
        self._next_line_s = get_time() + SECONDS_PER_LINE

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See `Progress.advance`."""
        super().advance(task_id, advance)
        self._print_if_due(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:  # noqa: ANN401  rich's keywords and free fields
        """See `Progress.update`."""
        super().update(task_id, **changes)
        self._print_if_due(task_id)

    def _print_if_due(self, task_id: TaskID) -> None:
        if self.get_time() < self._next_line_s:
            return
        self._next_line_s = self.get_time() + SECONDS_PER_LINE
        task = next(task for task in self.tasks if task.id == task_id)
        parts = [f"{task.completed:.0f} of {task.total:.0f}" if task.total else f"{task.completed:.0f}"]
        if task.time_remaining is not None:
            parts.append(f"{timedelta(seconds=round(task.time_remaining))} left")
        line = ", ".join([*parts, task.fields["note"]]).removesuffix(", ")
        self.console.print(f"{task.description}: {line}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Progress bars with count, elapsed time, remaining time and a note; lines if the console is no terminal."""
    if not console.is_terminal:
        yield ProgressLines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress
