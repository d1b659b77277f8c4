"""Storm and overload: which versions take turns, and what synthetic answers add up to."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import benchmarks.overload
import benchmarks.stage
import benchmarks.storm
from benchmarks.answers import Answer, Change
from benchmarks.bundles import BundleShape
from benchmarks.photographs import write_photographs
from benchmarks.report import Report
from benchmarks.running import Service, fill_store, per_batch
from benchmarks.stage import N_VERSIONS, ServeOptions, Stage
from benchmarks.tags import domain_name, label
from service.errors import SettingsError
from tests.tiny import tiny_backbone

HOT = domain_name(0)
DIGESTS = {(HOT, version): f"sha256:{version}" for version in range(1, N_VERSIONS + 1)}


class FakeService(Service):
    """Confirms every activation at once and counts nothing."""

    def activate(self, domain, version):
        activated.append(version)
        return Change(domain, version, 0.0, 0.0)

    def counters(self):
        return {"caspl_batch_rows_count": 0.0}


activated = []


def stage_with(**options):
    service = FakeService("http://127.0.0.1:9", 0, None, [HOT], DIGESTS)
    return Stage(ServeOptions(**options), service, [], None, Console(quiet=True))


def answer(due_s, latency_s=0.01, status=200, version=1, digest=None):
    return Answer(
        due_s,
        due_s,
        due_s + latency_s,
        status,
        HOT,
        HOT,
        version,
        digest or f"sha256:{version}",
        (label(HOT, version, 0),),
        "1",
    )


def test_a_storm_never_activates_the_version_that_is_live():
    activated.clear()
    service = stage_with().service
    first = benchmarks.storm.swap_on(service, HOT, 200.0, 0.05, 1)
    benchmarks.storm.swap_on(service, HOT, 200.0, 0.05, 1 + len(first))

    assert set(activated) == set(range(1, N_VERSIONS + 1))
    assert activated[0] != 1
    assert all(one != other for one, other in pairwise(activated))


def test_a_storm_counts_failures_stale_and_torn_answers(monkeypatch):
    on = stage_with(swap_storm=10.0, seconds=6.0)
    monkeypatch.setattr(benchmarks.storm, "swap_on", lambda *_: [Change(HOT, 3, 50.0, 51.0)])
    planted = [
        answer(0.0),
        answer(60.0, version=3),
        answer(60.0),
        answer(60.0, version=3, digest="sha256:1"),
        answer(60.0, status=429),
    ]

    def send(plan, meanwhile=lambda: None):
        meanwhile()
        return [*planted, answer(0.0, latency_s=0.02)]

    monkeypatch.setattr(benchmarks.storm, "send", send)
    report = Report("serve", {})
    benchmarks.storm.storm(on, report, ceiling_per_s=10.0)

    found = report.as_object()["ratios"]
    n_phases = benchmarks.storm.N_PHASES
    assert (found["storm_failed"], found["storm_stale"], found["storm_torn"]) == (n_phases, n_phases, n_phases)
    assert found["storm_p99_ratio"] == pytest.approx(1.0)


def test_overload_compares_what_was_answered_in_time_with_the_peak(monkeypatch):
    on = stage_with(overload=3.0, seconds=2.0, slo_ms=100.0)
    monkeypatch.setattr(Stage, "closed_rate", lambda *_, **__: 10.0)
    begin_s = 1000.0

    def send(plan):
        if not plan.due_s:  # half of the answers come too late, and 30 clients are refused
            good = [answer(0.01 * n, latency_s=0.05 if n % 2 else 0.2) for n in range(10)]
            return [*good, *[answer(0.3, latency_s=0.001, status=429)] * 30]
        due_s = begin_s + np.array(plan.due_s)
        fell_s = begin_s + 2.0
        told = []
        for index, due in enumerate(due_s.tolist()):
            if due >= fell_s or index % 3 == 0:
                told.append(answer(due))
            else:
                told.append(answer(due, latency_s=0.002, status=429))
        return told

    monkeypatch.setattr(benchmarks.overload, "send", send)
    monkeypatch.setattr(benchmarks.stage, "send", send)
    report = Report("serve", {})
    benchmarks.overload.overload(on, report)

    found = report.as_object()["ratios"]
    (sample,) = report.as_object()["samples"]["overload"]
    n_offered = sample["status"]
    assert found["overload_goodput_vs_peak"] == pytest.approx(1.0, rel=0.3)
    assert found["overload_refusal_p99_ms"] == pytest.approx(2.0)
    assert (found["overload_refusals_without_retry_after"], found["overload_failed"], found["overload_recovery_s"]) == (
        0,
        0,
        0,
    )
    assert n_offered.count(429) > n_offered.count(200) / 3
    # Out of what is told: in time and in the time, too late for the objective, half of it after the load.
    told = [answer(0.0), answer(0.0, latency_s=0.5), answer(0.96, latency_s=0.08)]
    assert benchmarks.overload.in_time_per_s(told, until_s=1.0, duration_s=1.0, slo_s=0.1) == pytest.approx(1.5)
    assert found["impatient_goodput_vs_peak"] == pytest.approx(5 / 0.5 / 10.0)
    assert "60 times a second" in report.numbers[-1].meaning


def test_crowds_take_turns_with_the_capacity_and_each_is_compared_with_its_neighbours(monkeypatch):
    on = stage_with(overload=3.0, seconds=180.0, slo_ms=100.0)
    capacities = iter([10.0, 30.0, 20.0, 20.0])
    crowds = iter([10.0, 20.0, 30.0])
    told = []

    def capacity(*_, **__):
        told.append("capacity")
        return next(capacities)

    monkeypatch.setattr(Stage, "closed_rate", capacity)
    monkeypatch.setattr(Stage, "closed", lambda *_, **__: [answer(0.0)])
    lasted = []

    def crowd(_, __, rate_per_s, duration_s, *, seed):
        told.append("crowd")
        lasted.append((rate_per_s, duration_s, seed))
        late = answer(1.0 + len(lasted), latency_s=0.2)  # the service needs as many seconds to be itself again
        return benchmarks.overload.Crowd([answer(0.0)], [late], 1.0, next(crowds))

    monkeypatch.setattr(benchmarks.overload, "crowd", crowd)
    report = Report("serve", {})
    benchmarks.overload.overload(on, report)

    assert [(rate, seconds) for rate, seconds, _ in lasted] == [(30.0, 60.0), (90.0, 60.0), (60.0, 60.0)]
    assert told == ["capacity", *(3 * ["crowd", "capacity"])]
    assert len({seed for *_, seed in lasted}) == 3
    goodput = report.numbers[0].ratio
    assert (goodput.n_rounds, goodput.low, goodput.value, goodput.high) == pytest.approx((3, 0.65, 0.8, 1.15))
    assert report.as_object()["ratios"]["overload_recovery_s"] == 3.0


def test_means_per_batch_come_from_the_difference_of_two_looks():
    before = {
        "caspl_batch_rows_sum": 10.0,
        "caspl_batch_rows_count": 5.0,
        "caspl_batch_domains_sum": 5.0,
        "caspl_batch_domains_count": 5.0,
    }
    after = {name: value + more for (name, value), more in zip(before.items(), (12.0, 3.0, 6.0, 3.0), strict=True)}

    assert per_batch(before, after) == {"batch_rows": 4.0, "batch_domains": 2.0}
    assert per_batch(before, before) == {"batch_rows": 0.0, "batch_domains": 0.0}


def test_a_store_of_random_domains_has_version_1_live_and_more_of_the_hottest(tmp_path):
    store, digests = fill_store(tmp_path, tiny_backbone(), n_domains=3, n_versions=4, shape=BundleShape(2, 1))

    assert [store.live(domain_name(index)).version for index in range(3)] == [1, 1, 1]
    assert [info.version for info in store.versions(HOT)] == [1, 2, 3, 4]
    assert len(set(digests.values())) == len(digests) == 6


def test_photographs_are_of_the_size_that_was_asked_for(tmp_path):
    def sizes(paths):
        for path in paths:
            with Image.open(path) as picture:
                yield picture.size

    assert set(sizes(write_photographs(tmp_path, side=64))) == {(64, 64)}
    assert len(set(sizes(write_photographs(tmp_path)))) > 1


def test_further_settings_reach_the_service_and_the_model_beside_it():
    options = ServeOptions(
        backbone="demo-student", device="cpu", extra=(("max_batch_rows", "7"), ("preprocess", "fast"))
    )
    assert options.service_settings()["max_batch_rows"] == "7"
    assert (options.settings().max_batch_rows, options.settings().preprocess) == (7, "fast")
    with pytest.raises(SettingsError, match="max_batch_rowz"):
        ServeOptions(device="cpu", extra=(("max_batch_rowz", "7"),)).settings()


def test_a_gpu_is_kept_busy_by_more_clients_than_a_cpu(monkeypatch):
    assert ServeOptions(device="cpu").n_ceiling_clients == 32
    monkeypatch.setattr(benchmarks.stage, "chosen_device", lambda _: "cuda")
    assert ServeOptions(device="cpu", extra=(("max_batch_rows", "128"),)).n_ceiling_clients == 512
