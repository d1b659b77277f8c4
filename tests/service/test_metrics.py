import re

from service.fair_queue import Priority
from service.metrics import Metrics
from tests.architecture.repository import ROOT


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


def test_every_metric_is_documented_and_every_documented_one_is_there():
    page = (ROOT / "docs/scheduling.md").read_text(encoding="utf-8")
    documented = {name.removesuffix("_total") for name in re.findall(r"^\| `(caspl_\w+)` \|", page, re.MULTILINE)}
    assert documented == {family.name for family in Metrics().registry.collect()}
