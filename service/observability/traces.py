"""OpenTelemetry traces: a server span per request, with a child span per stage of the images.

Exporter, service name and sampling are set by OpenTelemetry's own environment variables, such as
`OTEL_EXPORTER_OTLP_ENDPOINT`. The caller's `traceparent` header (W3C Trace Context) is continued.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from service.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Application = Callable[[Any, Any, Any], Awaitable[None]]  # ASGI

NAME: Final = "caspl-serve"
UNTRACED: Final = "livez,readyz,metrics"
MISSING: Final = "traces=true requires OpenTelemetry: pip install 'caspl-serve[traces]'."


class Traces:
    """Creates spans; `provider` exports them. Without one, spans go to the OTLP endpoint of the environment.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider or _provider()
        self._tracer = self.provider.get_tracer(NAME)

    def add_stages(self, durations_s: Mapping[str, float], began_s: float) -> None:
        """Add a child span per stage to the request's span.

        Args:
            durations_s: consecutive stages in seconds.
            began_s: monotonic time at the start of the first one.
        """
        at_ns = time.time_ns() - round((time.monotonic() - began_s) * 1e9)
        for stage, duration_s in durations_s.items():
            span = self._tracer.start_span(stage, start_time=at_ns)
            at_ns += round(duration_s * 1e9)
            span.end(at_ns)

    def wrap(self, app: Application, *, route_of: Callable[[str], str]) -> Application:
        """Wrap an ASGI application, so that every request has a server span; `route_of` gives the route of a path."""
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415  an extra

        def details(scope: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
            route = route_of(scope["path"])
            return f"{scope['method']} {route}", {"http.route": route}

        wrapped: Application = OpenTelemetryMiddleware(
            app,
            excluded_urls=UNTRACED,
            tracer_provider=self.provider,
            default_span_details=details,
            exclude_spans=["receive", "send"],
        )
        return wrapped

    def close(self) -> None:
        """Export the remaining spans."""
        self.provider.shutdown()


def _provider() -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(MISSING) from error
    attributes = {"service.name": NAME, "service.version": metadata.version("caspl-serve")}
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
