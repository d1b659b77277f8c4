"""`caspl bench table`: the Markdown of `docs/results`, and the tables in pages, generated from the JSON results."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import in_words
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
    (
        "engine in OpenVINO int8 with 12 prompt tokens, against open_clip in float32 without prompts",
        "engine",
        "{int8_vs_open_clip_float32} x images/s {int8_vs_open_clip_float32~}",
    ),
    (
        "engine in its fastest dtype and backend, against OpenVINO int8 alone without prompts",
        "engine",
        "{best_vs_openvino_int8} x images/s {best_vs_openvino_int8~}",
    ),
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
)
"""Text, result and template of each row of the summary; `{name}` is a median, `{name~}` its quartiles."""
CLIFF: Final = (
    "domains over slots",
    "Zipf exponent",
    "updates/s offered",
    "images/s (quartiles)",
    "against 1 x",
    "p50 / p99, ms",
)
"""Columns of `caspl bench cliff` for a page."""
ALL_COLD: Final = 0.9
"""Loads per request from which the latency of a cold domain was measured."""
PROOFS: Final = ("crash", "mutants", "fuzz", "soak")
"""Results of `make crash`, `make mutants` and so on, in the order of the page about reliability."""


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
    """Values for the templates."""
    fields = {name: _short(number["value"]) for name, number in numbers.items()}
    return fields | {f"{name}~": f"({_short(one['low'])} .. {_short(one['high'])})" for name, one in numbers.items()}


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"


def peer_tables(folder: Path, names: Sequence[str] = ()) -> str:
    """The comparison with other servers, a table per result and so per machine.

    Args:
        folder: of the results.
        names: of the results to show; all whose names begin with `peers` by default.
    """
    results = read_results(folder)
    parts = []
    for name in names or sorted(one for one in results if one.split("-")[0] == "peers"):
        result = results[name]
        numbers, rows = result["numbers"], result["samples"]["rows"]
        dtypes = sorted({row["dtype"] for row in rows.values()}, key=("bfloat16", "float32", "int8").index)
        peers: dict[tuple[str, str], dict[str, str]] = {}
        for key, row in rows.items():
            setting = key.partition(", against ")[2]
            label = row["package"] + (f", against ours in {setting}" if setting else "")
            peers.setdefault((label, row["note"]), {})[row["dtype"]] = _peer_cell(row, numbers.get(number_of(key)))
        cells = [(*peer, *(found.get(dtype, "") for dtype in dtypes)) for peer, found in peers.items()]
        dates = sorted({f"{row['date']}, {row['commit']}" for row in rows.values()})
        title = f"{in_words(result['hardware'])} ([{'; '.join(dates)}](RESULTS/{name}.md))"
        has_turns = all("failed" in row or isinstance(row["per_s"], list) for row in rows.values())
        title += ":" if has_turns else ", older method: this server before and after each of the others:"
        parts += [title, Table(("server", "setup", *dtypes), cells).markdown()]
    return "\n\n".join(parts)


def _peer_cell(row: Mapping[str, Any], number: Mapping[str, Any] | None) -> str:
    """The ratio and both rates."""
    if number is None:
        return "does not run"
    rates = (row[key] if isinstance(row[key], list) else [row[key]] for key in ("ours_per_s", "per_s"))
    ours, theirs = (_short(statistics.median(found)) for found in rates)
    spread = f"({_short(number['low'])} .. {_short(number['high'])})"
    return f"**{_short(number['value'])}** {spread}: {ours} / {theirs}"


def number_of(row: str) -> str:
    """Name of the number of a row of `caspl bench peers`: `vs_litserve_ours_bfloat16`."""
    return "vs_" + "".join(one if one.isalnum() else "_" for one in row.replace(", ", "_"))


def reliability_table(folder: Path) -> str:
    """The numbers of the commands in `PROOFS`, with their targets, machines and commands."""
    results = read_results(folder)
    rows = [
        (
            number["meaning"],
            f"**{_short(number['value'])}**",
            number.get("target", ""),
            f"[{results[name]['date']}, {results[name]['commit']}](RESULTS/{name}.md)",
        )
        for name in PROOFS
        if name in results
        for number in results[name]["numbers"].values()
    ]
    lines = [
        f"- `{results[name]['command']}`: {in_words(results[name]['hardware'])}." for name in PROOFS if name in results
    ]
    return "\n".join([Table(("what was counted", "result", "target", "date, commit"), rows).markdown(), "", *lines])


def plan_table(folder: Path) -> str:
    """Predicted and measured latencies of `caspl bench plan`."""
    result = read_results(folder)["plan"]
    table = result["tables"]["Predicted and measured latencies"]
    where = f"[{result['date']}, {result['commit']}](RESULTS/plan.md)"
    return "\n\n".join(
        [Table(table["headings"], table["rows"]).markdown(), f"{in_words(result['hardware'])}; {where}."]
    )


def cliff_table(folder: Path) -> str:
    """Rate and latency by working set of `caspl bench cliff`, and the latency of a cold domain."""
    result = read_results(folder)["cliff"]
    numbers, table = result["numbers"], result["tables"]["Working set over slots"]
    kept = [table["headings"].index(heading) for heading in CLIFF]
    rows = [[row[index] for index in kept] for row in table["rows"]]
    loads = numbers["cold_loads_per_request"]["value"]
    cold, resident, added = (
        f"{numbers[f'{name}_ms']['value']:.1f}" for name in ("cold_latency", "resident_latency", "cold_added")
    )
    last = (
        f"One client, every request to a domain outside the prompt bank: {cold} ms, {added} ms more than to one inside "
        f"it ({resident} ms)."
        if loads >= ALL_COLD
        else f"The latency of a cold domain is not known: in this run {loads:.0%} of the requests missed the bank."
    )
    where = f"[{result['date']}, {result['commit']}](RESULTS/cliff.md)"
    return "\n\n".join([Table(CLIFF, rows).markdown(), f"{last} {in_words(result['hardware'])}; {where}."])


def fill_tables(page: Path, folder: Path) -> None:
    """Put the generated tables between those of their marks that a page has, with links relative to it.

    `performance-summary` is the summary, `peers` the comparison with other servers on the machine of `peers.json`,
    `peers-all` that on all machines, `reliability` the numbers of the commands that prove it, `plan` the check of
    `caspl plan`, and `cliff` working sets larger than the prompt bank.

    Raises:
        ValueError: the page has none of the marks, or one of them twice.
    """
    relative = folder.resolve().relative_to(page.resolve().parent).as_posix()
    tables: dict[str, Callable[[], str]] = {
        SUMMARY: lambda: summary(folder),
        "peers": lambda: peer_tables(folder, ["peers"]),
        "peers-all": lambda: peer_tables(folder),
        "reliability": lambda: reliability_table(folder),
        "plan": lambda: plan_table(folder),
        "cliff": lambda: cliff_table(folder),
    }
    text = page.read_text(encoding="utf-8")
    if not (marks := [mark for mark in tables if f"<!-- {mark}:start -->" in text]):
        raise ValueError(f"{page} has none of the marks {', '.join(f'<!-- {mark}:start -->' for mark in tables)}")
    for mark in marks:
        fill_page(page, mark, "\n" + tables[mark]().replace("](RESULTS/", f"]({relative}/") + "\n")
