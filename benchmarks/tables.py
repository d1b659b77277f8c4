"""`caspl bench table`: the Markdown of `docs/results`, and the summary in pages, generated from the JSON results."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Table, write_result
from training.demo.pages import fill_page

SUMMARY: Final = "performance-summary"
"""Mark of the summary in a page."""

Numbers = Mapping[str, Mapping[str, Any]]


def _median(key: str, unit: str = "") -> Callable[[Numbers], str]:
    return lambda numbers: f"{_value(numbers, key)}{unit}"


def _spread(key: str, unit: str = "") -> Callable[[Numbers], str]:
    def shown(numbers: Numbers) -> str:
        number = numbers[key]
        quartiles = f" ({number['low']:.3g} .. {number['high']:.3g})" if number["n"] > 1 else ""
        return f"{number['value']:.3g}{unit}{quartiles}"

    return shown


def _value(numbers: Numbers, key: str) -> str:
    return f"{numbers[key]['value']:.3g}"


def _closed(numbers: Numbers) -> str:
    return " / ".join(_value(numbers, f"closed_{n_clients}_per_s") for n_clients in (1, 4, 16))


def _peers(dtype: str) -> Callable[[Numbers], str]:
    def shown(numbers: Numbers) -> str:
        names = [key for key in numbers if key.endswith(f"_{dtype}")]
        return ", ".join(f"{key[3 : -len(dtype) - 1].replace('_', '-')} {_value(numbers, key)} x" for key in names)

    return shown


ROWS: Final[tuple[tuple[str, str, Callable[[Numbers], str]], ...]] = (
    (
        "engine with 12 prompt tokens, against open_clip without prompts in the same dtype",
        "engine",
        _spread("vs_open_clip_same_dtype", " x images/s"),
    ),
    ("batches of 64 domains, against batches of one", "engine", _spread("mixed_64", " x images/s")),
    ("1,000 domains, against one", "engine", _spread("mixed_all", " x images/s")),
    ("12 prompt tokens, against none", "engine", _spread("prompt_overhead", " x time")),
    ("server, closed loop with 1 / 4 / 16 clients", "serve", lambda numbers: f"{_closed(numbers)} images/s"),
    (
        "server, open loop at 0.7 of the capacity, p50 / p99",
        "serve",
        lambda numbers: f"{_value(numbers, 'open_p50_ms')} / {_value(numbers, 'open_p99_ms')} ms",
    ),
    (
        "three times the capacity offered: answered in time, of the capacity; p99 of refusals",
        "serve",
        lambda numbers: f"{numbers['overload_goodput']['value']:.2f}; {_value(numbers, 'overload_refusal_p99_ms')} ms",
    ),
    (
        "demo model, ten swaps/s to new versions: p99 against no swaps; failed, stale and mixed answers",
        "serve-swaps",
        lambda numbers: (
            f"{_value(numbers, 'swap_p99_ratio')} x; "
            f"{sum(numbers[key]['value'] for key in ('swap_failed', 'swap_stale', 'swap_mixed')):.0f}"
        ),
    ),
    ("the same command again", "serve-swaps-again", _median("swap_p99_ratio", " x")),
    ("demo model, one request at a time: added by HTTP and queue", "serve-idle", _median("idle_overhead_ms", " ms")),
    ("start with 1,000 domains", "serve-start", _median("ready_after_s", " s")),
    ("four clients, against other servers in bfloat16", "peers", _peers("bfloat16")),
    ("the same in float32", "peers", _peers("float32")),
)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of `caspl bench` in a folder, by name."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return {one["name"]: one for one in found if isinstance(one, dict) and "numbers" in one}


def write_tables(folder: Path) -> list[Path]:
    """Generate the Markdown file of every result."""
    results = read_results(folder)
    for result in results.values():
        write_result(result, folder)
    return [folder / f"{name}.md" for name in results]


def summary(folder: Path) -> str:
    """The numbers that matter as a table; rows without a result are left out."""
    results = read_results(folder)
    rows = []
    for text, name, show in ROWS:
        if name in results and (shown := show(results[name]["numbers"])):
            where = f"[{results[name]['date']}, {results[name]['commit']}](RESULTS/{name}.md)"
            rows.append((text, shown, where))
    return Table(("measurement", "result", "date, commit"), rows).markdown()


def fill_summary(page: Path, folder: Path) -> None:
    """Put the summary between the marks of a page, with links relative to it.

    Raises:
        ValueError: the page lacks the marks.
    """
    relative = folder.resolve().relative_to(page.resolve().parent).as_posix()
    fill_page(page, SUMMARY, summary(folder).replace("](RESULTS/", f"]({relative}/"))
