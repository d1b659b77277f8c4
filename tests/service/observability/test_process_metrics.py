"""The numbers of several processes as one."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.observability.process_metrics import exposition, samples_of, summed


def registry(requests, seconds=(), gauge=0.0):
    found = CollectorRegistry()
    counter = Counter("caspl_requests", "Requests.", ["code"], registry=found)
    for code, n_requests in requests.items():
        counter.labels(code).inc(n_requests)
    took = Histogram("caspl_seconds", "Seconds.", ["route"], buckets=(0.1, 1), registry=found)
    for value in seconds:
        took.labels("/a").observe(value)
    Gauge("caspl_waiting", "Rows.", registry=found).set(gauge)
    return found


def test_counters_and_histograms_add_up_and_gauges_are_the_device_process_s_own():
    own = registry({"200": 1}, (0.05,), gauge=3)
    others = [samples_of(registry({"200": 2, "429": 5}, (0.5, 5), gauge=9)) for _ in range(2)]
    text = exposition(own, [sample for samples in others for sample in samples]).decode()
    for line in (
        'caspl_requests_total{code="200"} 5.0',
        'caspl_requests_total{code="429"} 10.0',
        'caspl_seconds_bucket{le="0.1",route="/a"} 1.0',
        'caspl_seconds_bucket{le="1.0",route="/a"} 3.0',
        'caspl_seconds_bucket{le="+Inf",route="/a"} 5.0',
        'caspl_seconds_count{route="/a"} 5.0',
        "caspl_waiting 3.0",
    ):
        assert line in text.splitlines()


def test_adding_nothing_changes_nothing_but_times_of_creation():
    own = registry({"200": 1}, (0.05,), gauge=3)
    plain = [line for line in generate_latest(own).splitlines() if b"_created" not in line]
    assert [line for line in exposition(own, []).splitlines() if b"_created" not in line] == plain
    assert summed(samples_of(own)) == samples_of(own)
