"""The command `caspl plan`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console

from caspl.capacity.measurements import Measurements, read_measurements, write_measurements
from caspl.capacity.measuring import ROUNDS, WARM_UP, measure
from caspl.capacity.sizing import Objective, Plan, cost_per_million, plan_for_rate, plan_for_servers
from caspl.client import DEFAULT_URL, Client
from caspl.terminal import Key, Url, exit_on_error, plain
from training.options import AsJson, Quiet
from training.progress import progress_bars

MIB: Final = 1024 * 1024

plan_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@plan_app.command(epilog="\b\nExample:\n  caspl plan --rate 500 --p99 300 --measurements server.json")
def plan(
    measurements: Annotated[Path, typer.Option(help="measured times of one server, a JSON file")],
    rate: Annotated[float | None, typer.Option(help="requests per second, all servers together")] = None,
    servers: Annotated[int | None, typer.Option(min=1, help="number of servers instead of --rate")] = None,
    p99: Annotated[float | None, typer.Option(help="99th percentile of the latency to keep, ms")] = None,
    images_per_request: Annotated[int, typer.Option(min=1, help="images in each request")] = 1,
    balancing: Annotated[
        Literal["random", "two-choices"],
        typer.Option(help="distribution of the requests: to any server, or to the less busy one of two"),
    ] = "random",
    spare: Annotated[int, typer.Option(min=0, help="servers that may fail")] = 1,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="price of one server, for the cost")] = None,
    bundle_kib: Annotated[float, typer.Option(min=0, help="size of a bundle, for the traffic of the store")] = 400.0,
    activations: Annotated[float, typer.Option(min=0, help="activations per day, all domains together")] = 24.0,
    poll: Annotated[float, typer.Option(min=0, help="the servers' store_poll_s")] = 1.0,
    pictures: Annotated[
        list[Path] | None,
        typer.Option("--measure", help="measure a running, idle server with this picture first; repeatable"),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="with --measure: a live domain of the server")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Size a deployment from measured batch times: servers, utilisation, latencies, store traffic and cost."""
    if pictures and not domain:
        raise typer.BadParameter("--measure needs a live domain of the server", param_hint="--domain")
    if (rate is not None and servers is not None) or (rate is None and servers is None and not pictures):
        raise typer.BadParameter("give either --rate or --servers", param_hint="--rate")
    if (rate is not None or servers is not None) and (p99 is None or p99 <= 0):
        raise typer.BadParameter("expected the latency to keep, in ms above 0", param_hint="--p99")
    if rate is not None and rate <= 0:
        raise typer.BadParameter(f"expected requests per second above 0, found {rate:g}", param_hint="--rate")
    with exit_on_error():
        if pictures and domain:
            _measure(url, key, domain, pictures, measurements, Console(stderr=True, highlight=False, quiet=quiet))
        if p99 is None:
            return
        times = read_measurements(measurements)
        objective = Objective(p99_ms=p99, images_per_request=images_per_request, balancing=balancing, spare=spare)
        if rate is not None:
            found = plan_for_rate(times, rate, objective)
        else:
            found = plan_for_servers(times, servers or 0, objective)
    traffic = store_traffic(found.servers, bundle_kib, activations, poll)
    cost = None if price_per_hour is None else cost_per_million(found, images_per_request, price_per_hour)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"store": traffic, "cost_per_million_images": cost}))
    else:
        _show(found, objective, times, traffic, cost)


def store_traffic(n_servers: int, bundle_kib: float, activations: float, poll_s: float) -> dict[str, float]:
    """Requests and bytes that all servers together exchange with a store in a bucket."""
    polls_per_s = n_servers / poll_s if poll_s else 0.0
    return {
        "polls_per_s": polls_per_s,
        "bytes_per_activation": n_servers * bundle_kib * 1024,
        "bytes_per_day": activations * n_servers * bundle_kib * 1024,
    }


def _measure(url: str, key: str | None, domain: str, pictures: list[Path], path: Path, console: Console) -> None:
    with Client(url, api_key=key, retry_for_s=0) as client, progress_bars(console) as bars:
        task = bars.add_task("measuring (rounds)", total=WARM_UP + ROUNDS, note="")
        found = measure(client, domain, pictures, on_round=lambda _: bars.advance(task))
    write_measurements(found, path)
    console.print(plain(f"wrote {path}"), soft_wrap=True)


def _show(
    found: Plan, objective: Objective, times: Measurements, traffic: dict[str, float], cost: float | None
) -> None:
    n_images, spare = objective.images_per_request, found.spare
    lines: dict[str, Any] = {
        "server": f"{times.backbone}, {times.dtype}, {times.device}, measured {times.date}",
        "load": f"{_number(found.rate_per_s)} requests/s of {n_images} image{'s' if n_images > 1 else ''}",
        "servers": f"{found.servers:,}" + (f", of which {spare} may fail" if spare else ""),
        "utilisation": f"{found.utilisation:.0%} of {_number(found.capacity_per_server)} images/s per server, "
        f"limited by {found.limited_by}",
        "latency": f"p50 {found.p50_ms:,.0f} ms, p99 {found.p99_ms:,.0f} ms"
        + (f", p99 {found.p99_without_spare_ms:,.0f} ms without the spare" if spare else ""),
        "batches": f"{found.images_per_batch:.1f} images on average",
        "headroom": f"the load may grow by {found.headroom:.0%} before p99 exceeds {objective.p99_ms:,.0f} ms",
        "store": f"{_number(traffic['polls_per_s'])} polls/s, {traffic['bytes_per_activation'] / MIB:,.1f} MiB per "
        f"activation, {traffic['bytes_per_day'] / MIB:,.0f} MiB per day",
    }
    if cost is not None:
        lines["cost"] = f"{cost:,.2f} per million images"
    console = Console(highlight=False)
    for name, text in lines.items():
        console.print(plain(f"{name:<12} {text}"), soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
