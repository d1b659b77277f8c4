import re

import torch

from service.access.keys import KeyRing
from service.app import build
from service.observability.device import DeviceMetrics
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.architecture.repository import ROOT
from tests.service.fakes import FakeModel


def value(metrics, name, **labels):
    """One number of the text that Prometheus reads; 0 where there is no such line."""
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    series = f"{name}{{{inside}}}" if inside else name
    found = re.search(rf"^{re.escape(series)} (\S+)$", metrics.text().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_batches_are_counted_by_why_they_started_with_their_rows_domains_and_padding():
    metrics = Metrics()
    metrics.batch_started(8, 0.1, "full")
    metrics.batch_started(5, 0.1, "idle")
    metrics.batch_started(5, 0.1, "idle")
    metrics.batch_running(3, 8, 8)
    metrics.batch_running(1, 5, 8)
    metrics.batch_running(2, 5, 8)
    assert value(metrics, "caspl_batches_total", reason="full") == 1
    assert value(metrics, "caspl_batches_total", reason="idle") == 2
    assert value(metrics, "caspl_batch_rows_sum") == 18
    assert value(metrics, "caspl_batch_domains_sum") == 6
    assert value(metrics, "caspl_batch_padding_ratio_sum") == 0.75
    assert value(metrics, "caspl_batch_padding_ratio_bucket", le="0.0") == 1


def test_rows_are_counted_by_priority_and_by_why_they_were_dropped():
    metrics = Metrics()
    metrics.rows_queued(3, "HIGH")
    metrics.rows_queued(2, "LOW")
    metrics.rows_dropped(2, "queue_full")
    assert value(metrics, "caspl_rows_entered_total", priority="high") == 3
    assert value(metrics, "caspl_rows_entered_total", priority="low") == 2
    assert value(metrics, "caspl_rows_dropped_total", reason="queue_full") == 2


def test_every_metric_is_documented_and_every_documented_one_is_there(store):
    page = (ROOT / "docs/scheduling.md").read_text(encoding="utf-8")
    documented = {name.removesuffix("_total") for name in re.findall(r"^\| `(caspl_\w+)` \|", page, re.MULTILINE)}
    context = build(Settings(), FakeModel(), store, KeyRing(()))
    own = {family.name for family in context.metrics.registry.collect() if family.name.startswith("caspl_")}
    assert {name.removesuffix("_info") for name in documented} == {name.removesuffix("_info") for name in own}


def test_only_the_live_version_of_a_domain_is_shown():
    metrics = Metrics()
    metrics.live_version_changed("paint", None, (1, "sha256:1"))
    metrics.live_version_changed("paint", (1, "sha256:1"), (2, "sha256:2"))
    assert value(metrics, "caspl_live_version", domain="paint") == 2
    assert value(metrics, "caspl_bundle_info", digest="sha256:2", domain="paint", version="2") == 1
    assert "sha256:1" not in metrics.text().decode()
    metrics.live_version_changed("paint", (2, "sha256:2"), None)
    assert value(metrics, "caspl_live_version", domain="paint") == 0
    assert "sha256:2" not in metrics.text().decode()


def test_domains_are_counted_by_state():
    metrics = Metrics()
    for before, after in ((None, "idle"), (None, "idle"), ("idle", "live")):
        metrics.state_changed(before, after)
    assert [value(metrics, "caspl_domains", state=state) for state in ("live", "stale", "idle")] == [1, 0, 1]


def test_without_domains_as_labels_no_name_of_one_shows_and_everything_is_counted():
    metrics = Metrics(by_domain=False)
    metrics.live_version_changed("paint", None, (1, "sha256:1"))
    for domain in ("paint", "ink"):
        metrics.image_counted(domain, "answered")
        metrics.domain_activated(domain, "done")
    assert value(metrics, "caspl_images_total", domain="", result="answered") == 2
    assert value(metrics, "caspl_activations_total", domain="", result="done") == 2
    assert "paint" not in metrics.text().decode()


def test_a_device_tells_how_busy_it_was_and_a_gpu_its_memory(monkeypatch):
    metrics = Metrics()
    metrics.registry.register(DeviceMetrics(lambda: (2.5, 3, 8), torch.device("cpu")))
    assert value(metrics, "caspl_device_busy_seconds_total") == 2.5
    assert value(metrics, "caspl_device_out_of_memory_total") == 3
    assert value(metrics, "caspl_device_batch_limit_rows") == 8
    assert "caspl_device_memory_bytes{" not in metrics.text().decode()
    facts = type("Facts", (), {"total_memory": 80})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 8)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 5)
    on_gpu = Metrics()
    on_gpu.registry.register(DeviceMetrics(lambda: (2.5, 3, 8), torch.device("cuda")))
    found = {kind: value(on_gpu, "caspl_device_memory_bytes", kind=kind) for kind in ("total", "reserved", "allocated")}
    assert found == {"total": 80, "reserved": 8, "allocated": 5}
