"""The Ray Serve application: each replica is one service with one device.

`app` is the import path for Ray's own configuration files, `application` the same for Python. Nothing here loads torch
outside a replica.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import ray
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from service.configuration.environment import load_settings
from service.errors import SettingsError
from service.observability import logs
from service.process import set_openmp_spinning, tune_interpreter
from service.settings import MOST_GPU_ROWS, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.http.context import ServiceContext

logger = logging.getLogger(__name__)

NAME: Final = "caspl"
"""Of the application and of its only deployment."""
ROUTERS: Final = {
    "load": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
    "domain": "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
}
HEALTH_PERIOD_S: Final = 5.0
N_STARTS: Final = 3
"""Attempts to start a replica before a deployment fails."""
METRICS_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True)
class Layout:
    """How many replicas to run, and how requests reach them.

    Args:
        min_replicas, max_replicas: equal for a fixed number.
        route_by: `load` sends a request to the less loaded of two replicas, `domain` the requests of a domain to the
            same one while that has room.
        cpus: cores of a replica.
        gpus: GPUs of a replica, 0 or 1.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    route_by: Literal["load", "domain"] = "load"
    cpus: int = 1
    gpus: int = 0

    def options(self, settings: Settings) -> dict[str, Any]:
        """The options of the Ray deployment."""
        is_sized = not self.gpus or "max_batch_rows" in settings.model_fields_set
        n_rows = settings.max_batch_rows if is_sized else MOST_GPU_ROWS
        # By load, a replica limits its requests itself. By domain, a full replica passes requests on to the next one.
        n_open = 4 * max(settings.max_open_requests, 4 * n_rows)
        n_replicas: dict[str, Any] = {"num_replicas": self.min_replicas}
        if self.min_replicas != self.max_replicas:
            scaling = AutoscalingConfig(
                min_replicas=self.min_replicas, max_replicas=self.max_replicas, target_ongoing_requests=n_rows
            )
            n_replicas = {"autoscaling_config": scaling}
        return {
            "name": NAME,
            **n_replicas,
            "max_ongoing_requests": n_open if self.route_by == "load" else 2 * n_rows,
            "max_queued_requests": n_open,
            "request_router_config": RequestRouterConfig(request_router_class=ROUTERS[self.route_by]),
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
            "health_check_period_s": HEALTH_PERIOD_S,
            "graceful_shutdown_timeout_s": settings.drain_timeout_s,
            "graceful_shutdown_wait_loop_s": 0.5,
            "max_constructor_retry_count": N_STARTS,
        }


class Replica:
    """What Ray calls on a replica besides its routes; `serve.ingress` adds `app`."""

    app: FastAPI

    async def check_health(self) -> None:
        """Fail if the device or the event loop is stuck or lost: Ray then replaces the replica."""
        if not self._context.is_alive:
            raise RuntimeError(f"The replica is not alive: {self._context.failed_because() or 'event_loop_stuck'}.")

    async def drain(self) -> None:
        """Have `/readyz` answer 503 from now on."""
        self._context.is_draining = True

    async def metrics(self) -> tuple[str, list[Metric]]:
        """The replica's id and metrics."""
        return serve.get_replica_context().replica_id.unique_id, list(self._context.metrics.registry.collect())

    @property
    def _context(self) -> ServiceContext:
        context: ServiceContext = self.app.state.context
        return context


def application(settings: Settings, layout: Layout) -> Application:
    """The service as a Ray application.

    Raises:
        SettingsError: a setting that does not apply to replicas.
    """
    if settings.web_workers:
        raise SettingsError("web_workers does not apply to Ray replicas; run more replicas instead.")
    if settings.device.startswith("cuda:"):
        raise SettingsError(f"Ray assigns the GPUs; expected device auto, cpu or cuda, found {settings.device}.")

    def build() -> FastAPI:
        return _build(settings)

    return serve.deployment(serve.ingress(build)(Replica)).options(**layout.options(settings)).bind()


def app(args: dict[str, Any]) -> Application:
    """The application for Ray's configuration files, whose `args` are settings, as in `store: s3://models/shelf`.

    CASPL_* variables of its runtime environment apply as well, and options of the deployment `caspl` in the file
    override those of this function. Keys are required unless `host` names the loopback address on which Ray listens.

    Raises:
        SettingsError: an unknown or invalid setting.
    """
    if unknown := sorted(set(args) - set(Settings.model_fields)):
        raise SettingsError(f"Unknown args: {', '.join(unknown)}. docs/configuration.md lists all settings.")
    settings = load_settings(**{"host": "0.0.0.0"} | args)  # noqa: S104  Ray listens there unless told otherwise
    return application(settings, Layout(gpus=0 if settings.device == "cpu" or settings.needs_openvino else 1))


def _build(settings: Settings) -> FastAPI:
    """Load the model and create the application, in a replica."""
    set_openmp_spinning()
    logs.install(settings.log_format, settings.log_level)
    from prompt_store.stores import open_store
    from service.app import create_app
    from service.engine.loading import load_model, with_gpu_limits
    from service.server import load_keys, require_gpu_decoding

    keys = load_keys(settings)
    assigned = ray.get_runtime_context().get_assigned_resources()  # torch uses as many cores through OMP_NUM_THREADS
    if settings.n_decode_threads == 0 and not assigned.get("GPU"):
        settings = settings.model_copy(update={"n_decode_threads": max(1, int(assigned.get("CPU", 1)))})
    settings = with_gpu_limits(settings)
    if settings.preprocess == "gpu":
        require_gpu_decoding()
    store = open_store(settings.store, create=False, cache=settings.store_cache, allow_stale=True)
    made = create_app(settings, load_model(settings), store, keys)
    context: ServiceContext = made.state.context
    context.gather_metrics = lambda: _all_metrics(context)
    context.watchdog.start(context.failed_because)
    tune_interpreter()
    return made


async def _all_metrics(context: ServiceContext) -> bytes:
    """The metrics of all replicas in the Prometheus text format, labelled with `replica`; this one's on failure."""
    try:
        async with asyncio.timeout(METRICS_TIMEOUT_S):
            replicas = await serve.get_deployment_handle(NAME, app_name=NAME).broadcast("metrics").results_async()
    except Exception:
        logger.exception("ray.metrics_incomplete")
        replicas = [(serve.get_replica_context().replica_id.unique_id, list(context.metrics.registry.collect()))]
    return labelled(replicas)


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def labelled(replicas: list[tuple[str, list[Metric]]]) -> bytes:
    """The metrics of several replicas in the Prometheus text format; a label `replica` tells them apart."""
    families: dict[str, Metric] = {}
    for replica, metrics in replicas:
        for metric in metrics:
            family = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
            )
            for sample in metric.samples:
                family.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
    return generate_latest(_Collected(list(families.values())))
