import re

import torch

from service.domains.live_table import DomainState, ServedStack
from service.http.auth import KeyRing
from service.observability.device import DeviceMetrics
from service.observability.metrics import Metrics
from service.runtime import build
from service.scheduler.fair_queue import Priority
from service.settings import Settings
from tests.architecture.repository import ROOT
from tests.service.fakes import FakeModel


def value(metrics, name, **labels):
    """One number of the text that Prometheus reads; 0 where there is no such line."""
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    series = f"{name}{{{inside}}}" if inside else name
    found = re.search(rf"^{re.escape(series)} (\S+)$", metrics.text().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_batches_are_counted_by_why_they_left_with_what_they_carry_for_nothing():
    metrics = Metrics()
    metrics.batch_formed(8, 8, 0.1, "full")
    metrics.batch_formed(5, 8, 0.1, "free")
    metrics.batch_formed(5, 8, 0.1, "free")
    assert value(metrics, "caspl_batches_total", reason="full") == 1
    assert value(metrics, "caspl_batches_total", reason="free") == 2
    assert value(metrics, "caspl_batch_rows_sum") == 18
    assert value(metrics, "caspl_batch_padding_ratio_sum") == 0.75
    assert value(metrics, "caspl_batch_padding_ratio_bucket", le="0.0") == 1


def test_rows_are_counted_by_priority_and_by_why_they_were_dropped():
    metrics = Metrics()
    metrics.rows_entered(3, Priority.HIGH)
    metrics.rows_entered(2, Priority.LOW)
    metrics.row_dropped("queue_full")
    assert value(metrics, "caspl_rows_entered_total", priority="high") == 3
    assert value(metrics, "caspl_rows_entered_total", priority="low") == 2
    assert value(metrics, "caspl_rows_dropped_total", reason="queue_full") == 1


def test_predictions_are_judged_apart_by_whether_the_answer_came_later_or_sooner():
    metrics = Metrics()
    metrics.call_answered(2.0, 2.5)
    metrics.call_answered(2.0, 1.75)
    assert value(metrics, "caspl_wait_prediction_error_seconds_sum", way="later") == 0.5
    assert value(metrics, "caspl_wait_prediction_error_seconds_sum", way="sooner") == 0.25


def test_every_metric_is_documented_and_every_documented_one_is_there(store):
    page = (ROOT / "docs/scheduling.md").read_text(encoding="utf-8")
    documented = {name.removesuffix("_total") for name in re.findall(r"^\| `(caspl_\w+)` \|", page, re.MULTILINE)}
    runtime = build(Settings(), FakeModel(), store, KeyRing(()))
    own = {family.name for family in runtime.metrics.registry.collect() if family.name.startswith("caspl_")}
    assert {name.removesuffix("_info") for name in documented} == {name.removesuffix("_info") for name in own}


def test_what_a_domain_answers_with_is_shown_and_what_it_answered_with_before_is_not():
    metrics = Metrics()
    first, second = (DomainState(ServedStack("paint", n, f"sha256:{n}", None)) for n in (1, 2))
    metrics.domain_changed("paint", None, first)
    metrics.domain_changed("paint", first, second)
    assert value(metrics, "caspl_live_version", domain="paint") == 2
    assert value(metrics, "caspl_bundle_info", digest="sha256:2", domain="paint", version="2") == 1
    assert "sha256:1" not in metrics.text().decode()
    metrics.domain_changed("paint", second, DomainState(None))
    assert value(metrics, "caspl_live_version", domain="paint") == 0
    assert "sha256:2" not in metrics.text().decode()


def test_without_domains_as_labels_no_name_of_one_shows_and_everything_is_counted():
    metrics = Metrics(by_domain=False)
    metrics.domain_changed("paint", None, DomainState(ServedStack("paint", 1, "sha256:1", None)))
    for domain in ("paint", "ink"):
        metrics.image_counted(domain, "answered")
        metrics.domain_activated(domain, "done")
    assert value(metrics, "caspl_images_total", domain="", result="answered") == 2
    assert value(metrics, "caspl_activations_total", domain="", result="done") == 2
    assert value(metrics, "caspl_domains", state="live") == 1
    assert "paint" not in metrics.text().decode()


class FakeEngine:
    busy_s, n_out_of_memory = 2.5, 3


def test_a_device_tells_how_busy_it_was_and_a_gpu_its_memory(monkeypatch):
    metrics = Metrics()
    metrics.registry.register(DeviceMetrics(FakeEngine(), torch.device("cpu")))
    assert value(metrics, "caspl_device_busy_seconds_total") == 2.5
    assert value(metrics, "caspl_device_out_of_memory_total") == 3
    assert "caspl_device_memory_bytes{" not in metrics.text().decode()
    facts = type("Facts", (), {"total_memory": 80})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 8)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 5)
    on_gpu = Metrics()
    on_gpu.registry.register(DeviceMetrics(FakeEngine(), torch.device("cuda")))
    found = {kind: value(on_gpu, "caspl_device_memory_bytes", kind=kind) for kind in ("total", "reserved", "allocated")}
    assert found == {"total": 80, "reserved": 8, "allocated": 5}
