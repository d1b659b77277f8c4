"""Builds the application: parts, routes, error handlers, middleware. Reads no environment and loads no weights."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import ProcessCollector

from prompt_store.store import Store
from service.access.audit import AuditFollower
from service.access.key_file import Key
from service.access.keys import KeyRing
from service.access.signing import load_signing
from service.domains.backend import LabelSet, LocalBackend
from service.domains.cache import LoadingCache
from service.domains.creator import DomainCreator
from service.domains.live_table import LiveTable
from service.domains.loader import VersionLoader
from service.domains.publisher import Publisher
from service.domains.rollouts.comparisons import Comparisons
from service.domains.rollouts.lifecycle import Rollouts
from service.domains.watcher import StoreWatcher
from service.engine.engine import Engine
from service.examples.database import open_examples
from service.examples.fitter import Fitter
from service.http import problems
from service.http.context import ServiceContext
from service.http.middleware import install_middleware
from service.http.openapi import Application
from service.http.routes import (
    classify,
    domains,
    embeddings,
    examples,
    fit,
    groups,
    health,
    infer,
    labelling,
    meta,
    models,
    pages,
    rollouts,
)
from service.images.decoder import Decoder
from service.observability.device import DeviceMetrics, build_facts, package_version
from service.observability.metrics import Metrics
from service.scheduler.batcher import Batcher
from service.settings import Settings
from service.sources.follower import open_sources

if TYPE_CHECKING:
    from prompted_clip.model import PromptedClip
    from prompted_clip.stack import PromptStack


def create_app(settings: Settings, model: PromptedClip, store: Store, keys: tuple[Key, ...] = ()) -> FastAPI:
    """The whole service as an ASGI application; `app.state.context` is its `ServiceContext`.

    Only the engine's threads may use `model` from now on. Without keys every request is allowed.
    """
    context = build(settings, model, store, KeyRing(keys, settings.keys_file))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await context.start()
        try:
            yield
        finally:
            await context.stop()

    app = create_routes(context)
    app.router.lifespan_context = lifespan
    install_middleware(app, context)
    return app


def create_routes(context: ServiceContext) -> FastAPI:
    """The routes without the middleware; the context is started elsewhere."""
    app = Application(
        context.keys,
        title="CasPL Serve",
        summary="Image classification for many domains on one CLIP, with prompts that are swapped while it serves.",
        version=package_version(),
        exception_handlers={**problems.HANDLERS},
        separate_input_output_schemas=False,
        servers=[{"url": context.settings.root_path}] if context.settings.root_path else None,
    )
    app.state.context = context
    for part in (classify, domains, examples, fit, groups, labelling, health, meta, pages, rollouts):
        app.include_router(part.router, responses=problems.OPENAPI)
    for part in (infer, models):
        app.include_router(part.router, responses=problems.INFERENCE_OPENAPI)
    app.include_router(embeddings.router, responses=problems.OPENAI_OPENAPI)
    return app


def build(settings: Settings, model: PromptedClip, store: Store, keys: KeyRing) -> ServiceContext:
    """Wire the parts of one process; starts nothing."""
    metrics = Metrics(by_domain=settings.domain_metrics)
    engine = Engine(
        model, observer=metrics, resident_domains=settings.kept_domains, stuck_after_s=settings.stuck_after_s
    )
    metrics.build.info(build_facts(settings, model))

    def device_numbers() -> tuple[float, int, int]:
        return engine.activity.busy_s, engine.n_out_of_memory, engine.batch_limit.max_rows

    metrics.registry.register(DeviceMetrics(device_numbers, model.backbone.device))
    ProcessCollector(registry=metrics.registry)
    batcher = Batcher(
        engine.run,
        max_batch_rows=engine.max_batch_rows(settings.max_batch_rows),
        max_queued_rows=settings.max_queued_rows,
        observer=metrics,
        max_running=engine.num_streams,
        pipeline_depth=model.pipeline_depth,
        cost=operator.attrgetter("stack.n_text_rows"),
        max_cost=max(1, settings.max_text_rows // engine.num_streams),
    )
    metrics.queue_rows.set_function(lambda: batcher.n_queued)
    table = LiveTable(metrics)
    loader = VersionLoader(
        store,
        engine,
        max_recent=settings.max_old_stacks,
        max_waiting=settings.max_waiting_stacks,
        signing=load_signing(settings),
    )
    publisher = Publisher(table, loader, engine, metrics)
    lifecycle = Rollouts(table, loader, publisher, metrics)
    label_sets: LoadingCache[LabelSet, PromptStack] = LoadingCache(
        settings.max_label_sets, max_waiting=settings.max_waiting_stacks
    )
    decoder = Decoder(settings, model.backbone.image_size, model.backbone.preprocess, device=str(model.backbone.device))
    comparisons = Comparisons(table, batcher, metrics, lifecycle.conclude)
    backend = LocalBackend(table, loader, engine, batcher, label_sets, comparisons)
    examples = open_examples(store.root, settings)
    return ServiceContext(
        settings=settings,
        metrics=metrics,
        keys=keys,
        decoder=decoder,
        backend=backend,
        examples=examples,
        engine=engine,
        batcher=batcher,
        store=store,
        table=table,
        publisher=publisher,
        rollouts=lifecycle,
        creator=DomainCreator(table, loader, publisher, engine),
        fitter=Fitter(examples, backend, publisher, decoder, metrics, max_waiting=settings.max_waiting_stacks),
        watcher=StoreWatcher(table, loader, publisher, lifecycle, metrics),
        audit=AuditFollower(store, keys),
        sources=open_sources(settings, table, publisher, loader, metrics),
    )
