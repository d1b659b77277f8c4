"""`caspl serve --ray`: starts or joins Ray, serves until a signal, drains. Ray is imported only then."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.console import Console

from service.errors import SettingsError
from service.http.server import address_of, listen
from service.process import usable_cores
from service.ray.options import RayError, RayOptions
from service.ray.proxy import CALLBACK
from service.server import load_keys
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.serve import Application

    from service.ray.application import Layout

logger = logging.getLogger(__name__)

ENVIRONMENT: Final = dict([CALLBACK, ("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_worker_niceness", "0")])
"""Read by Ray when it is imported, and by the processes that it starts; variables that are already set are kept."""
OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024
"""Images and answers travel in messages, not in Ray's object store."""


def run(settings: Settings, options: RayOptions, console: Console) -> int:
    """Serve on Ray until a signal; returns the exit status.

    Joins the cluster of RAY_ADDRESS if it is set, else starts Ray on this machine.

    Args:
        settings: of every replica.
        options: how many replicas, and how requests reach them.
        console: for the banner.

    Raises:
        SettingsError: invalid settings, no extra `ray`, or Ray Serve already runs on the cluster.
        RayError: Ray or the replicas did not start.
    """
    n_replicas = options.bounds()
    load_keys(settings)
    with listen(settings.host, settings.port) as listener:
        address, port = address_of(listener), listener.getsockname()[1]
    os.environ.update(ENVIRONMENT | os.environ)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise SettingsError("--ray requires Ray: pip install 'caspl-serve[ray]'.") from error
    from service.ray.application import application

    is_joined = bool(os.environ.get("RAY_ADDRESS"))
    try:
        layout = _start_ray(settings, n_replicas, options.route_by, is_joined=is_joined)
        target = application(settings, layout)
        if is_joined and serve.status().proxies:
            raise SettingsError("Ray Serve already runs on this cluster; use `serve deploy` instead, see docs/ray.md.")
        serve.start(http_options={"host": settings.host, "port": port}, logging_config={"log_level": "WARNING"})
        try:
            _serve(target, settings, lambda: _announce(console, settings, layout, address))
        finally:
            serve.shutdown()
    finally:
        ray.shutdown()
    return 0


def _serve(target: Application, settings: Settings, announce: Callable[[], None]) -> None:
    """Deploy the application, call `announce` and serve until a signal; then drain.

    Raises:
        RayError: the replicas did not start.
    """
    from ray import serve

    from service.ray.application import NAME

    try:
        handle = serve.run(target, name=NAME, logging_config={"log_level": "WARNING", "enable_access_log": False})
    except RuntimeError as error:
        raise RayError(f"The replicas did not start: {error}") from error
    stopping = _Stopping()  # until here signals end the process
    announce()
    stopping.requested.wait()
    if not stopping.hurried.is_set():
        logger.info("server.draining", extra={"for_s": settings.drain_delay_s})
        try:
            handle.broadcast("drain").results(timeout_s=settings.drain_timeout_s)
        except Exception:
            logger.exception("ray.drain_incomplete")  # of a replica that has just ended, for example
        stopping.hurried.wait(settings.drain_delay_s)
    serve.delete(NAME)  # open requests finish, new ones get 503


def _start_ray(
    settings: Settings, n_replicas: tuple[int, int], route_by: Literal["load", "domain"], *, is_joined: bool
) -> Layout:
    """Start or join Ray; returns how the replicas fit on it.

    Raises:
        SettingsError: not enough GPUs.
        RayError: Ray does not start, or there is no cluster at RAY_ADDRESS.
    """
    import ray

    from service.ray.application import Layout

    least, most = n_replicas
    where: dict[str, Any]
    if is_joined:
        cpus, where = settings.n_torch_threads or 1, {}
    else:
        cores = usable_cores()
        cpus = settings.n_torch_threads or max(1, cores // most)
        where = {
            "address": "local",
            "num_cpus": max(cores, cpus * most),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(logging_level=logging.WARNING, **where)  # without an address, the one of RAY_ADDRESS
    except Exception as error:
        raise RayError(f"Ray did not start, or is not at RAY_ADDRESS: {error}") from error
    wants_gpu = not settings.needs_openvino and settings.device != "cpu"
    n_gpus = int(ray.cluster_resources().get("GPU", 0)) if wants_gpu else 0
    if not n_gpus and settings.device == "cuda":
        raise SettingsError("device cuda: Ray finds no GPU. Use device auto or cpu.")
    if 0 < n_gpus < least:
        raise SettingsError(f"{least} replicas need a GPU each, but Ray finds {n_gpus}. Use fewer, or device cpu.")
    return Layout(least, most, route_by, cpus=1 if n_gpus else cpus, gpus=1 if n_gpus else 0)


def _announce(console: Console, settings: Settings, layout: Layout, address: str) -> None:
    """Report that the replicas accept requests: as a banner, or as a log line in JSON."""
    if settings.log_format == "json":
        facts = {"address": address, "backbone": settings.backbone, "store": settings.store, **asdict(layout)}
        logger.info("server.started", extra=facts)
        return
    least, most = layout.min_replicas, layout.max_replicas
    hardware = "a GPU" if layout.gpus else f"{layout.cpus} {'core' if layout.cpus == 1 else 'cores'}"
    console.print("CasPL Serve on Ray", style="bold")
    console.print(f"  backbone  {settings.backbone}")
    console.print(f"  store     {settings.store}", soft_wrap=True)
    console.print(f"  replicas  {least if least == most else f'{least} to {most}'}, each with {hardware}")
    console.print(f"  routes    by {layout.route_by}")
    console.print(f"  open      {address}  (page), {address}/docs (API)", soft_wrap=True)


class _Stopping:
    """Signals: the first SIGTERM drains; SIGINT and a second signal skip the delay."""

    def __init__(self) -> None:
        self.requested, self.hurried = threading.Event(), threading.Event()
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._on_signal)

    def _on_signal(self, sig: int, _: FrameType | None) -> None:
        if self.requested.is_set() or sig == signal.SIGINT:
            self.hurried.set()
        self.requested.set()
