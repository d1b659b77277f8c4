"""Progress in log files and pipes: lines at intervals instead of bars."""

import io

from rich.console import Console

from training.progress import SECONDS_PER_LINE, ProgressLines, progress_bars


def console(**options):
    return Console(file=io.StringIO(), width=200, **options)


def test_a_line_is_printed_every_ten_seconds_with_counts_time_left_and_note():
    clock = [0.0]
    out = console()
    progress = ProgressLines(out, get_time=lambda: clock[0])
    task = progress.add_task("boosting flowers", total=100, note="")
    for step in range(1, 26):
        clock[0] = float(step)
        progress.update(task, completed=step, note=f"loss {step}")
    lines = out.file.getvalue().splitlines()
    assert SECONDS_PER_LINE == 10
    assert [line.split(",")[0] for line in lines] == ["boosting flowers: 10 of 100", "boosting flowers: 20 of 100"]
    assert lines[0].endswith("0:01:30 left, loss 10")


def test_advancing_a_task_prints_lines_too():
    clock = [0.0]
    out = console()
    progress = ProgressLines(out, get_time=lambda: clock[0])
    task = progress.add_task("reading images", total=None, note="")
    clock[0] = 11.0
    progress.advance(task, 64)
    assert out.file.getvalue() == "reading images: 64\n"


def test_quick_tasks_print_nothing_outside_a_terminal():
    out = console()
    with progress_bars(out) as progress:
        progress.advance(progress.add_task("reading images", total=2, note=""))
    assert out.file.getvalue() == ""


def test_a_terminal_gets_bars():
    out = console(force_terminal=True)
    with progress_bars(out) as progress:
        progress.advance(progress.add_task("reading images", total=1, note=""))
    assert "1/1" in out.file.getvalue()
