"""`caspl bench http`: closed loops by wrk, CPU time by part, and the numbers with targets."""

import json

import pytest

from benchmarks.errors import BenchError
from benchmarks.fixed_device import BATCH_S, launcher
from benchmarks.http_capacity import HttpOptions, Sample, add_numbers, add_profile, measure, write_bodies
from benchmarks.photographs import write_photographs
from benchmarks.profiles import OTHER, WITHOUT_PYTHON, Profile, part_of
from benchmarks.report import Report, markdown
from benchmarks.server import FORM, ServerOptions, backbone_of, fill_store, serving
from benchmarks.wrk import Loop, require_success, require_wrk, run


@pytest.fixture
def wrk(tmp_path, monkeypatch):
    """A command named wrk that prints a given output and records its arguments and content type."""

    def install(output, status=0):
        path = tmp_path / "bin" / "wrk"
        path.parent.mkdir(exist_ok=True)
        recorded = tmp_path / "recorded"
        path.write_text(f'#!/bin/sh\necho "$*" "$CONTENT_TYPE" > {recorded}\necho \'{output}\'\nexit {status}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))
        return recorded

    return install


def result(statuses, *, us=1, errors=0):
    return "RESULT " + json.dumps({"us": us, "errors": errors, "statuses": statuses})


def loop(tmp_path, **changes):
    body = tmp_path / "body.jpg"
    body.write_bytes(b"\xff\xd8")
    options = {"n_clients": 4, "seconds": 2} | changes
    return require_success(run("http://127.0.0.1:9", ["/"], [body], tmp_path, **options))


def test_a_closed_loop_counts_the_requests_of_wrk(wrk, tmp_path):
    recorded = wrk(result({"200": 1200}, us=2_000_000))

    found = loop(tmp_path, n_clients=64)

    assert (found.n_requests, found.seconds) == (1200, 2.0)
    assert found.client_cpu_s >= 0
    assert "-c64 -d2s" in recorded.read_text()
    assert "image/jpeg" in recorded.read_text()


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        (result({"200": 7, "429": 2, "504": 1}), 0, "of 10 requests, 3 were not answered with success; 0 failed"),
        (result({"200": 10}, errors=2), 0, "2 failed"),
        (result({}), 0, "of 0 requests"),
        ("unable to connect", 1, "wrk failed: unable to connect"),
    ],
)
def test_a_closed_loop_with_failures_is_an_error(wrk, tmp_path, output, status, message):
    wrk(output, status)

    with pytest.raises(BenchError, match=message):
        loop(tmp_path)


def test_without_wrk_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BenchError, match="apt-get install wrk"):
        require_wrk()


def test_an_unknown_side_is_an_error_that_lists_the_known_ones(wrk):
    wrk("")

    with pytest.raises(BenchError, match=r"\[7\]; choose from 224, 1024"):
        measure(HttpOptions(sides=(7,)), None)


def test_bodies_are_one_file_or_a_form_of_several(tmp_path):
    bodies = write_bodies(HttpOptions(sides=(224,), images=(1, 8)), tmp_path)

    assert {case: content_type for case, (_, content_type) in bodies.items()} == {
        (224, 1): "image/jpeg",
        (224, 8): FORM,
    }
    assert bodies[224, 8][0].read_bytes().count(b"\xff\xd8\xff") == 8


@pytest.mark.slow
def test_the_simulated_device_answers_over_http_after_its_fixed_time(tmp_path):
    options = ServerOptions("demo-student", "cpu", "float32")
    digests = fill_store(tmp_path / "store", backbone_of(options), n_domains=1)
    (jpeg, *_) = write_photographs(tmp_path, side=64)

    with serving(options, tmp_path / "store", digests, [], caspl=launcher(tmp_path)) as server:
        headers = {"Content-Type": "image/jpeg"}
        response = server.client.post(f"/classify/{server.domains[0]}", content=jpeg.read_bytes(), headers=headers)

    body = response.raise_for_status().json()
    assert [one["probability"] for one in body["results"][0]["predictions"]] == [1.0]
    assert body["timing_ms"]["device"] >= 1000 * BATCH_S


def test_web_processes_are_compared_per_core_that_the_client_does_not_use(monkeypatch):
    monkeypatch.setattr("benchmarks.http_capacity.machine", lambda: {"n_cores": 2})
    samples = {
        (224, 1, 0): [Sample(Loop({200: 1000}, 1.0, 0, client_cpu_s=0.5), server_cpu_s=1.0)],
        (224, 1, 2): [Sample(Loop({200: 1500}, 1.0, 0, client_cpu_s=1.0), server_cpu_s=1.0)],
    }
    report = Report("http", {})

    add_numbers(report, HttpOptions(), samples)

    assert report.numbers["requests_per_s"] | {"value": 1000, "met": False} == report.numbers["requests_per_s"]
    assert report.numbers["request_cpu_ms"]["value"] == 1.0
    assert report.numbers["two_web_processes"]["value"] == pytest.approx(1.5 / 1.0 * 1.5)
    assert report.numbers["two_web_processes"]["met"]


def test_the_cpu_time_of_each_thread_is_divided_among_its_samples():
    lines = [
        "thread (7): MainThread;run (asyncio/runners.py:9);app (fastapi/routing.py:3) 3",
        "thread (7): MainThread;run (asyncio/runners.py:9);select (selectors.py:468) 1",
        "thread (8): decode_0;_worker (concurrent/futures/thread.py:81);load (PIL/ImageFile.py:300) 50",
    ]
    found = Profile()

    found.fill(lines, {7: 4.0, 8: 1.0, 9: 0.5})

    assert found.n_samples == 54
    assert found.by_part == {
        "FastAPI, Starlette, pydantic": 3.0,
        "event loop": 1.0,
        "decoding": 1.0,
        WITHOUT_PYTHON: 0.5,
    }
    assert found.by_function["`app` (fastapi/routing.py)"] == 3.0


def test_a_sample_belongs_to_its_innermost_frame_of_a_part():
    assert part_of(["uvicorn/server.py", "service/http/routes/classify.py", "contextlib.py"]) == "routes"
    assert part_of(["threading.py"]) == OTHER


def test_the_profile_is_in_microseconds_per_request():
    found = Profile()
    found.fill(["thread (1): MainThread;f (h11/_connection.py:1) 2"], {1: 0.5})
    report = Report("http", {})

    add_profile(report, HttpOptions(), found, n_requests=1000)

    assert "| socket and HTTP/1.1 | 500 | 100.0 % |" in markdown(report.as_object())
