"""`caspl bench table`: the Markdown of `docs/results`, and the summary in pages, generated from the JSON results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Table, write_result
from training.demo.pages import fill_page

SUMMARY: Final = "performance-summary"
"""Mark of the summary in a page."""
CLOSED: Final = "{closed_1_per_s} / {closed_4_per_s} / {closed_16_per_s} images/s"
SWAPS: Final = "{swap_p99_ratio} x; {swap_failed} / {swap_stale} / {swap_mixed}"
ROWS: Final = (
    (
        "engine with 12 prompt tokens, against open_clip without prompts in the same dtype",
        "engine",
        "{vs_open_clip_same_dtype} x images/s {vs_open_clip_same_dtype~}",
    ),
    ("batches of 64 domains, against one domain", "engine", "{mixed_64} x images/s {mixed_64~}"),
    ("batches of 1,000 domains, against one", "engine", "{mixed_all} x images/s {mixed_all~}"),
    ("12 prompt tokens, against none", "engine", "{prompt_overhead} x time {prompt_overhead~}"),
    ("server, closed loop with 1 / 4 / 16 clients", "serve", CLOSED),
    ("server, open loop at 0.7 of the capacity, p50 / p99", "serve", "{open_p50_ms} / {open_p99_ms} ms"),
    (
        "three times the capacity offered: answered in time, of the capacity; p99 of refusals",
        "serve",
        "{overload_goodput} x {overload_goodput~}; {overload_refusal_p99_ms} ms",
    ),
    ("demo model, ten swaps/s to new versions: p99; failed / stale / mixed answers", "serve-swaps", SWAPS),
    ("the same command again", "serve-swaps-again", SWAPS),
    ("demo model, one request at a time: added by HTTP and queue", "serve-idle", "{idle_overhead_ms} ms"),
    ("start with 1,000 domains", "serve-start", "{ready_after_s} s"),
    ("four clients, against other servers in bfloat16", "peers", "{bfloat16}"),
    ("four clients, against other servers in float32", "peers", "{float32}"),
)
"""Text, result and template of each row of the summary; `{name}` is a median, `{name~}` its quartiles."""


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
    for text, name, template in ROWS:
        fields = _fields(results[name]["numbers"]) if name in results else {}
        if all(field in fields for field in template.replace("}", "{").split("{")[1::2]):
            where = f"[{results[name]['date']}, {results[name]['commit']}](RESULTS/{name}.md)"
            rows.append((text, template.format_map(fields), where))
    return Table(("measurement", "result", "date, commit"), rows).markdown()


def _fields(numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Values for the templates; for the peers of one dtype, all their ratios."""
    fields = {name: _short(number["value"]) for name, number in numbers.items()}
    fields |= {f"{name}~": f"({_short(one['low'])} .. {_short(one['high'])})" for name, one in numbers.items()}
    for dtype in ("bfloat16", "float32"):
        peers = {name[3 : -len(dtype) - 1]: fields[name] for name in numbers if name.endswith(f"_{dtype}")}
        if peers:
            fields[dtype] = ", ".join(f"{name.replace('_', '-')} {value} x" for name, value in peers.items())
    return fields


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"


def fill_summary(page: Path, folder: Path) -> None:
    """Put the summary between the marks of a page, with links relative to it.

    Raises:
        ValueError: the page lacks the marks.
    """
    relative = folder.resolve().relative_to(page.resolve().parent).as_posix()
    fill_page(page, SUMMARY, summary(folder).replace("](RESULTS/", f"]({relative}/"))
