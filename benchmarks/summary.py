"""The few numbers of `caspl bench` that README shows, from the results on file, a column for every processor.

`python -m benchmarks.summary --page README.md` puts them there.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markdown import Markdown

from training.demo.pages import fill_page

PROCESSORS: Final = {
    "-avx512": "AMD, AVX-512: bfloat16",
    "-amx": "Intel, AMX: bfloat16",
    "-avx2": "AMD, AVX2: float32",
}
"""By what the names of their results end with."""
PEERS: Final = ("litserve", "ray", "infinity", "fastapi")
RESULTS: Final = Path(__file__).parents[1] / "docs" / "results"

Ratios = Mapping[str, float]
ROWS: Final[tuple[tuple[str, str, Callable[[Ratios], str]], ...]] = (
    (
        "every image of a batch from another one of 64 domains, against one domain's",
        "engine",
        lambda found: f"{found['mixed_64_vs_single']:.2f} x images/s",
    ),
    (
        "1,000 domains, room for 64 on the device, against one",
        "engine",
        lambda found: f"{found['paged_1000_of_64_vs_single']:.2f} x",
    ),
    (
        "against open_clip's plain model in float32",
        "engine",
        lambda found: f"{found['vs_open_clip_fp32_eager']:.1f} x",
    ),
    (
        "12 prompt tokens against none, quartiles",
        "engine",
        lambda found: f"{100 * found['prompt_overhead low']:+.0f} .. {100 * found['prompt_overhead high']:+.0f} % time",
    ),
    (
        "four clients through HTTP against the same callers without / the engine's best batches",
        "serve-http",
        lambda found: f"{found['http_vs_engine_same_callers']:.2f} / {found['http_vs_engine']:.2f} x",
    ),
    (
        "one request at a time, tiny model: what HTTP adds",
        "serve-idle",
        lambda found: f"{found['idle_overhead_ms']:.1f} ms",
    ),
    (
        "ten swaps a second on the busiest domain, tiny model: failed, stale or torn answers; p99 against calm",
        "serve-storm",
        lambda found: (
            f"{found['storm_failed'] + found['storm_stale'] + found['storm_torn']:.0f}; "
            f"{found['storm_p99_ratio']:.2f} x"
        ),
    ),
    (
        "the same with every version read and made anew: p99",
        "serve-storm-anew",
        lambda found: f"{found['storm_p99_ratio']:.2f} x",
    ),
    (
        "three times the load it can bear: answered in time, of the peak; 99 of 100 refusals within",
        "serve-overload",
        lambda found: f"{found['overload_goodput_vs_peak']:.2f} x; {found['overload_refusal_p99_ms']:.0f} ms",
    ),
    ("memory after 10,000 swaps, tiny model", "swap", lambda found: f"{100 * found['memory_growth']:+.1f} %"),
    (
        "four clients, against LitServe / Ray Serve / infinity / plain FastAPI in float32",
        "peers",
        lambda found: _beside(found, "float32", PEERS),
    ),
    (
        "the same in bfloat16, which infinity does not compute in on a CPU",
        "peers",
        lambda found: _beside(found, "bfloat16", tuple(name for name in PEERS if name != "infinity")),
    ),
)


def table(folder: Path = RESULTS) -> str:
    """What serving costs, in a few lines of Markdown; an empty cell where it was not measured."""
    lines = [["what", *PROCESSORS.values()], ["---"] * (1 + len(PROCESSORS))]
    for what, name, shown in ROWS:
        cells = []
        for ending in PROCESSORS:
            filed = _filed(folder / f"bench-{name}{ending}.json")
            try:
                cells.append(shown(_numbers(filed)) if filed else "")
            except KeyError:
                cells.append("")
        lines.append([what, *cells])
    engines = [_filed(folder / f"bench-engine{ending}.json") for ending in PROCESSORS]
    lines.append(["the engine measured on", *(filed["date"] if filed else "" for filed in engines)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _beside(found: Ratios, dtype: str, names: tuple[str, ...]) -> str:
    return " / ".join(f"{found[f'ours_vs_{name}_{dtype}']:.1f}" for name in names) + " x"


def _numbers(filed: Mapping[str, Any]) -> dict[str, float]:
    """Medians by name, and quartiles behind it."""
    spread = {f"{name} {end}": one[end] for name, one in filed["spread"].items() for end in ("low", "high")}
    return {**filed["ratios"], **spread}


def _filed(path: Path) -> dict[str, Any] | None:
    filed: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return filed


def main(page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None) -> None:
    """Show the numbers on file."""
    Console().print(Markdown(table()))
    if page is not None:
        fill_page(page, "serving-table", table())


if __name__ == "__main__":
    typer.run(main)
