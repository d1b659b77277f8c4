"""The few numbers of `caspl bench` that README shows, from the results on file.

`python -m benchmarks.summary --page README.md` puts them there.
"""

import json
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markdown import Markdown

from training.demo.pages import fill_page

PEERS: Final = ("litserve", "ray", "infinity", "fastapi")
RESULTS: Final = Path(__file__).parents[1] / "docs" / "results"


def table(folder: Path = RESULTS) -> str:
    """What serving costs, in a few lines of Markdown."""
    engine, overload, storm, idle, peers, swap = (
        json.loads((folder / f"bench-{name}.json").read_text(encoding="utf-8"))["ratios"]
        for name in ("engine", "serve-overload", "serve-storm", "serve-idle", "peers", "swap")
    )
    rows = [
        (
            "every image of a batch from another one of 64 domains",
            f"{engine['mixed_64_vs_single']:.2f} times one domain's",
        ),
        ("1,000 domains, room for 64 on the device", f"{engine['paged_1000_of_64_vs_single']:.2f} times one domain's"),
        ("against open_clip's plain model, float32", f"{engine['vs_open_clip_fp32_eager']:.1f} times its images/s"),
        ("12 prompt tokens against none", f"{100 * engine['prompt_overhead']:+.0f} % time"),
        ("one request at a time, tiny model: what HTTP adds", f"{idle['idle_overhead_ms']:.1f} ms"),
        (
            "ten swaps a second on the busiest domain: failed, stale or torn answers",
            f"{storm['storm_failed'] + storm['storm_stale'] + storm['storm_torn']:.0f}",
        ),
        (
            "three times the load it can bear: answered in time",
            f"{overload['overload_goodput_vs_peak']:.2f} times the peak; the rest refused in "
            f"{overload['overload_refusal_p99_ms']:.0f} ms (99 of 100)",
        ),
        ("memory after 10,000 swaps", f"{100 * swap['memory_growth']:+.1f} %"),
        (
            "four clients, against LitServe / Ray Serve / infinity / plain FastAPI in bfloat16",
            " / ".join(f"{peers[f'ours_vs_{name}_bfloat16']:.1f}" for name in PEERS) + " times their images/s",
        ),
    ]
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])


def main(page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None) -> None:
    """Show the numbers on file."""
    Console().print(Markdown(table()))
    if page is not None:
        fill_page(page, "serving-table", table())


if __name__ == "__main__":
    typer.run(main)
