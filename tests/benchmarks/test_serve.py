"""Swap load, overload and the server under test: what synthetic answers add up to."""

import json
from dataclasses import replace
from itertools import count

import httpx
import pytest
from PIL import Image

from benchmarks.answers import Answer, Swap
from benchmarks.bundles import domain_name, label
from benchmarks.errors import BenchError
from benchmarks.fits import add_fit_load
from benchmarks.overload import Round, add_overload, connections
from benchmarks.phases import Phase
from benchmarks.photographs import write_photographs
from benchmarks.report import Report
from benchmarks.rollouts import PLAN, Rollout, add_rollout_load, shadow_for
from benchmarks.serve import ServeOptions, measure
from benchmarks.server import Server, ServerOptions, fill_store, multipart
from benchmarks.swaps import add_swap_load, swap_for
from benchmarks.wrk import Loop
from prompt_store.store import Store
from tests.tiny import tiny_backbone

HOT = domain_name(0)
DIGESTS = {(HOT, version): f"sha256:{version}" for version in range(1, 5)}


def answer(due_s, latency_s=0.01, status=200, version=1, digest=None):
    return Answer(
        due_s=due_s,
        sent_s=due_s,
        done_s=due_s + latency_s,
        status=status,
        requested=HOT,
        domain=HOT,
        version=version,
        digest=digest or f"sha256:{version}",
        labels=(label(HOT, version, 0),),
        retry_after="1",
    )


def values(report):
    return {name: number["value"] for name, number in report.numbers.items()}


class FakeServer(Server):
    """Confirms every activation at once."""

    def activate(self, domain, version):
        return Swap(domain, version, 0.0, 0.0)


def fake_server():
    return FakeServer("http://127.0.0.1:9", None, [HOT], [], DIGESTS)


def test_every_activation_goes_to_a_version_that_was_never_loaded():
    versions = count(2)
    first = swap_for(fake_server(), HOT, versions, 0.25)
    second = swap_for(fake_server(), HOT, versions, 0.25)

    assert [swap.version for swap in first + second] == list(range(2, 2 + len(first) + len(second)))


def test_a_rollout_of_the_load_compares_all_images_and_is_stopped():
    requests = []

    def respond(request):
        requests.append((request.method, request.url.path, request.content))
        return httpx.Response(200, json={"n_compared": 3, "n_dropped": 1})

    client = httpx.Client(base_url="http://test", transport=httpx.MockTransport(respond))
    assert shadow_for(replace(fake_server(), client=client), HOT, 0.0) == [Rollout(3, 1)]
    assert [(method, path) for method, path, _ in requests] == [
        (method, f"/domains/{HOT}/rollout") for method in ("POST", "GET", "DELETE")
    ]
    assert json.loads(requests[0][2]) == PLAN


def test_rollout_load_compares_latencies_and_counts_images():
    calm, shadowed = Phase([answer(due) for due in range(100)]), [Rollout(60, 20), Rollout(0, 20)]
    report = Report("test", {})
    slow = Phase([answer(due, 0.02) for due in range(99)] + [answer(99, status=429)], shadowed)
    add_rollout_load(report, [calm, slow])
    found = values(report)
    assert found["rollout_p99_ratio"] == pytest.approx(2.0, rel=0.02)
    assert (found["rollout_failed"], found["rollout_compared"]) == (1, 0.6)


def test_swap_load_counts_failed_stale_and_mixed_answers():
    calm = Phase([answer(0.0), answer(1.0, latency_s=0.02)], [])
    swapping = Phase(
        [
            answer(60.0, version=3, latency_s=0.02),
            answer(60.0),
            answer(60.0, version=3, digest="sha256:1"),
            answer(60.0, status=429),
        ],
        [Swap(HOT, 3, 50.0, 51.0), Swap(HOT, 4, 90.0, 91.0)],
    )
    report = Report("serve", {})

    add_swap_load(report, [calm, swapping], HOT, fake_server(), [0.0, 2.0**20])

    found = values(report)
    assert (found["swap_failed"], found["swap_stale"], found["swap_mixed"]) == (1, 1, 1)
    assert found["swap_p99_ratio"] == pytest.approx(1.0, rel=0.02)
    assert found["swap_memory_mib"] == 1.0


def test_overload_compares_answers_and_requests_with_the_capacity():
    load = Loop({200: 30, 429: 80, 504: 5, 500: 1}, 2.0, n_errors=2, client_cpu_s=0.1)
    probes = [answer(0.0), *[answer(0.1, status=429, latency_s=0.002)] * 2, answer(0.2, status=0)]
    after = [answer(2.0), answer(2.5, latency_s=0.5)]
    report = Report("serve", {})

    add_overload(report, [Round(20.0, load, probes, after, 2.0)], times=3.0, slo_s=0.1, target=0.9)

    found = values(report)
    assert (found["overload_goodput"], found["overload_offered"]) == (0.775, 3.0)
    assert found["overload_refusal_p99_ms"] == pytest.approx(2.0)
    assert (found["overload_no_retry_after"], found["overload_failed"]) == (0, 1 + 2 + 1)
    assert found["overload_recovery_s"] == pytest.approx(0.5)


def test_slow_models_are_overloaded_from_few_connections_with_short_pauses():
    assert connections(27.0, mean_wait_s=0.5) == (27, 0.5)
    assert connections(2000.0, mean_wait_s=0.7) == (1000, 0.5)
    assert connections(4000.0, mean_wait_s=0.7) == (1000, 0.25)


def test_a_store_of_random_domains_has_version_1_live_and_more_of_the_first(tmp_path):
    digests = fill_store(tmp_path, tiny_backbone(), n_domains=3, n_versions=4)
    store = Store.open(tmp_path)

    assert [store.live(domain_name(index)).version for index in range(3)] == [1, 1, 1]
    assert [info.version for info in store.versions(HOT)] == [1, 2, 3, 4]
    assert len(set(digests.values())) == len(digests) == 6


def test_options_become_the_options_and_variables_of_the_server():
    options = ServerOptions(
        backbone="ViT-B-16", dtype="float32", web_workers=2, threads=1, extra=(("log_format", "json"),)
    )

    assert options.words()[-4:] == ["--dtype", "float32", "--web-workers", "2"]
    assert replace(options, backend="openvino").words()[-4:] == ["--backend", "openvino", "--web-workers", "2"]
    assert options.variables() == {
        "CASPL_LOG_FORMAT": "json",
        "CASPL_RANDOM_WEIGHTS": "0",
        "CASPL_N_TORCH_THREADS": "1",
    }


def test_an_unknown_part_is_refused_before_anything_starts():
    with pytest.raises(BenchError, match="unknown parts: storm; choose from start, idle"):
        measure(ServeOptions(only=("idle", "storm")), None)


def test_photographs_have_the_chosen_size_and_travel_in_one_form(tmp_path):
    def sizes(paths):
        for path in paths:
            with Image.open(path) as picture:
                yield picture.size

    photographs = write_photographs(tmp_path, side=64)
    assert set(sizes(photographs)) == {(64, 64)}
    assert len(set(sizes(write_photographs(tmp_path)))) > 1
    body = tmp_path / "body"
    assert multipart(photographs, [HOT] * 6, body) == str(body)
    assert body.read_bytes().count(b"--benchmark\r\n") == 6


def test_a_closed_loop_that_was_too_short_is_repeated_at_four_times_the_length(monkeypatch):
    durations_s = []

    def closed(_, n_clients, duration_s):
        durations_s.append(duration_s)
        return [answer(0.0), answer(1.0)] if len(durations_s) > 1 else [answer(0.0)]

    monkeypatch.setattr(Server, "closed", closed)

    assert fake_server().closed_rate(1, 5.0) == pytest.approx(1.0)
    assert durations_s == [5.0, 20.0]


def test_fit_load_compares_the_latencies_of_phases_with_and_without_fits():
    report = Report("serve", {}, device="cpu")
    calm = [answer(index, 0.010) for index in range(100)]
    slower = [answer(index, 0.012) for index in range(100)]
    add_fit_load(report, [Phase(calm), Phase([*slower, answer(100, status=429)], [0.5, 0.7])] * 3)
    found = values(report)
    assert found["fit_p99_ratio"] == pytest.approx(1.2)
    assert found["fit_p99_ratio_by_pair"] == pytest.approx(1.2)
    assert found["fit_failed"] == 3
    assert report.tables["Fit load"].rows[1][4:] == (2, "0.70")
