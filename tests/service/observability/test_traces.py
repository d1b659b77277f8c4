"""OpenTelemetry traces of classify requests."""

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from prompt_store.store import Store
from tests.service.fakes import colour_bundle, picture
from tests.service.processes import eventually, serving

pytestmark = pytest.mark.slow  # real server processes

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector():
    """The address of an OTLP collector, and the spans that it has received, by trace."""
    spans, received = defaultdict(list), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        spans[span.trace_id.hex()].append((resource.resource, span))
            received.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans, received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("web_workers", [0, 1])
def test_a_request_continues_the_callers_trace_with_a_span_per_stage(tmp_path, collector, monkeypatch, web_workers):
    address, spans, _ = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    store = Store.open(tmp_path / "store")
    store.add("paint", colour_bundle("paint"))
    store.activate("paint", 1)
    with serving(store, traces=True, web_workers=web_workers) as (_, url):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        answer = httpx.post(f"{url}/classify/paint", content=picture(), headers=headers, trust_env=False, timeout=20)
        httpx.get(f"{url}/readyz", trust_env=False)
        assert answer.status_code == 200
        eventually(lambda: len(spans[TRACE]) == 4)
    assert set(spans) == {TRACE}
    by_name = {span.name: span for _, span in spans[TRACE]}
    assert set(by_name) == {"POST /classify/{domain}", "decode", "queue", "device"}
    request = by_name["POST /classify/{domain}"]
    assert request.parent_span_id.hex() == PARENT
    at_ns = request.start_time_unix_nano
    for stage in ("decode", "queue", "device"):
        span = by_name[stage]
        assert span.parent_span_id == request.span_id
        assert at_ns <= span.start_time_unix_nano <= span.end_time_unix_nano
        at_ns = span.end_time_unix_nano - 1  # rounding
    resource = {one.key: one.value.string_value for one in spans[TRACE][0][0].attributes}
    assert resource["service.name"] == "caspl-serve"


def test_without_the_setting_nothing_is_sent(tmp_path, collector, monkeypatch):
    address, spans, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    store = Store.open(tmp_path / "store")
    store.add("paint", colour_bundle("paint"))
    store.activate("paint", 1)
    with serving(store) as (_, url):
        httpx.post(f"{url}/classify/paint", content=picture(), trust_env=False, timeout=20).raise_for_status()
    assert not received.is_set()
    assert not spans
