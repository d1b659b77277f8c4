"""`caspl plan`: its output, its refusals, and a measurement of the demo service in a process."""

import json

import pytest
from typer.testing import CliRunner

from caspl.capacity.measurements import read_measurements, write_measurements
from caspl.plan_command import plan_app
from service.demo.files import ASSETS
from service.demo.process import running
from tests.caspl.capacity.times import server

PICTURE = ASSETS / "images" / "satellite" / "striped-donut-1.jpg"


@pytest.fixture
def measured(tmp_path):
    path = tmp_path / "server.json"
    write_measurements(server({1: 0.05, 8: 0.2}), path)
    return path


def run(*words):
    return CliRunner().invoke(plan_app, [str(word) for word in words])


def test_the_plan_has_servers_latencies_traffic_and_cost(measured):
    words = ("--rate", 500, "--p99", 300, "--measurements", measured, "--price-per-hour", 1.8, "--bundle-kib", 1024)

    shown = run(*words, "--activations", 10)
    found = json.loads(run(*words, "--activations", 10, "--json").stdout)

    assert shown.exit_code == 0, shown.output
    assert found["p99_without_spare_ms"] <= 300
    n_servers = found["servers"]
    assert found["store"] == {
        "polls_per_s": n_servers,
        "bytes_per_activation": n_servers * 2**20,
        "bytes_per_day": 10 * n_servers * 2**20,
    }
    assert found["cost_per_million_images"] == pytest.approx(n_servers * 1.8 / 3600 / 500 * 1e6)
    assert f"servers      {n_servers}, of which 1 may fail\n" in shown.stdout
    assert f"cost         {n_servers * 1.8 / 3600 / 500 * 1e6:.2f} per million images\n" in shown.stdout


def test_the_same_command_prints_the_same_numbers(measured):
    words = ("--servers", 1000, "--p99", 250, "--measurements", measured)

    assert run(*words).stdout == run(*words).stdout


def test_an_impossible_latency_is_one_line_and_status_1(measured):
    refused = run("--rate", 10, "--p99", 20, "--measurements", measured)

    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: Impossible objective: A p99 of 20 ms is out of reach")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "either --rate or --servers"),
        (("--rate", 5, "--servers", 2, "--p99", 9), "either --rate or --servers"),
        (("--rate", 5), "the latency to keep"),
        (("--rate", 0, "--p99", 9), "requests per second above 0, found 0"),
        (("--measure", "photo.jpg"), "a live domain"),
    ],
)
def test_a_missing_or_wrong_option_is_refused(measured, words, reason):
    refused = run(*words, "--measurements", measured)

    assert refused.exit_code == 2
    assert reason in " ".join(refused.stderr.replace("│", " ").split())


@pytest.mark.parametrize("content", [None, b"{}", b"\xff"])
def test_a_missing_or_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)

    refused = run("--rate", 5, "--p99", 100, "--measurements", path)

    assert refused.exit_code == 1
    assert str(path) in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_running_server_is_measured_and_planned_in_one_call(tmp_path):
    path = tmp_path / "server.json"
    with running(ASSETS, []) as (_, client):
        planned = run(
            *("--measure", PICTURE, "--domain", "satellite", "--url", client.base_url, "--measurements", path, "-q"),
            *("--rate", 50, "--p99", 5000, "--json"),
        )
        refused = run("--measure", PICTURE, "--domain", "nowhere", "--url", client.base_url, "--measurements", path)
        n_cores = client.get("/info").json()["batches"]["n_cores"]

    assert planned.exit_code == 0, planned.output
    times = read_measurements(path)
    assert (times.backbone, times.device, times.n_cores) == ("demo-student", "cpu", n_cores)
    assert times.batches[0].rows == 1
    assert times.batches[-1].rows == 16
    assert 0 < times.decode_s < 5
    assert json.loads(planned.stdout)["rate_per_s"] == 50
    assert (refused.exit_code, refused.stderr.count("nowhere")) == (1, 1)
