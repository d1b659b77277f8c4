"""Rollouts through the clients and `caspl rollout`: with the service in memory, and with one that stands for it."""

import asyncio
import json

import httpx
import pytest
from typer.testing import CliRunner

import caspl
from caspl import rollout_command
from caspl.errors import ConflictError, NotFoundError
from caspl.rollout_command import rollout_app
from tests.service.fakes import colour_bundle, picture

RUNNING = {
    "domain": "paint",
    "version": 2,
    "digest": "sha256:a",
    "live_version": 1,
    "mode": "canary",
    "percent": 12.5,
    "max_disagreement": 0.05,
    "max_confidence_shift": 0.1,
    "min_images": 200,
    "then": "activate",
    "started_at": "2026-11-30T12:00:00Z",
    "started_by": "anna",
    "n_compared": 40,
    "n_disagreed": 1,
    "n_failed": 1,
    "n_dropped": 3,
    "disagreement": 0.05,
    "confidence_shift": -0.0214,
    "confidence_shift_error": 0.004,
}
NONE = {"title": "No rollout", "code": "rollout_not_found", "detail": "No rollout of paint is running."}


def test_the_client_starts_shows_and_stops_a_rollout_of_a_running_service(serve, store):
    digest = store.add("paint", colour_bundle(seed=1)).digest

    async def life():
        async with serve() as http, caspl.AsyncClient("http://localhost", transport=http._transport) as client:
            assert await client.rollout("paint") is None
            started = await client.start_rollout("paint", 2, mode="canary", percent=100, min_images=50)
            assert (started.version, started.digest, started.live_version) == (2, digest, 1)
            with pytest.raises(ConflictError, match="Stop it first"):
                await client.start_rollout("paint", 2)
            (by_candidate,) = await client.classify([picture()], "paint")
            assert (by_candidate.version, by_candidate.is_candidate) == (2, True)
            found = await client.rollout("paint")
            assert (found.mode, found.percent, found.min_images, found.then) == ("canary", 100, 50, "hold")
            await client.stop_rollout("paint")
            with pytest.raises(NotFoundError) as missing:
                await client.stop_rollout("paint")
            assert missing.value.code == "rollout_not_found"
            with pytest.raises(NotFoundError) as missing:
                await client.rollout("nowhere")
            assert missing.value.code == "domain_not_found"
            (by_live,) = await client.classify([picture()], "paint")
            assert (by_live.version, by_live.is_candidate) == (1, False)

    asyncio.run(life())


@pytest.fixture
def command(monkeypatch):
    """Run `caspl rollout` with one response of the server; returns the result and the request."""

    def run(response, *words):
        seen = []

        def answer(request):
            seen.append(request)
            return response

        def client(url, **settings):
            return caspl.Client(url, transport=httpx.MockTransport(answer), **settings)

        monkeypatch.setattr(rollout_command, "Client", client)
        return CliRunner().invoke(rollout_app, [*words], catch_exceptions=False), seen[0]

    return run


def test_start_sends_the_plan_and_prints_the_rollout(command):
    words = ("start", "paint", "2", "--mode", "canary", "--percent", "12.5", "--then", "activate")
    result, request = command(httpx.Response(201, json=RUNNING), *words)
    assert result.exit_code == 0, result.output
    assert (request.method, request.url.path) == ("POST", "/domains/paint/rollout")
    assert json.loads(request.content) == {
        "version": 2,
        "mode": "canary",
        "percent": 12.5,
        "max_disagreement": 0.05,
        "max_confidence_shift": 0.1,
        "min_images": 200,
        "then": "activate",
    }
    assert result.stdout.splitlines() == [
        "paint: canary of version 2 beside live version 1, 12.5 % of the requests, for at least 200 images, then the "
        "candidate goes live",
        "compared 40 images, not compared 3",
        "disagreement 5.0%, 1 of them failed (at most 5.0%)",
        "confidence shift -0.021 ± 0.004 (at most 0.100)",
    ]


def test_show_prints_json_for_programs(command):
    result, request = command(httpx.Response(200, json=RUNNING), "show", "paint", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, RUNNING)
    assert (request.method, request.url.path) == ("GET", "/domains/paint/rollout")


def test_a_rollout_without_images_shows_no_figures(command):
    fresh = dict.fromkeys(("disagreement", "confidence_shift", "confidence_shift_error")) | {"n_compared": 0}
    result, _ = command(httpx.Response(200, json=RUNNING | fresh), "show", "paint")
    assert result.stdout.splitlines()[1:] == ["compared 0 images, not compared 3"]


@pytest.mark.parametrize(("options", "printed"), [((), "No rollout of paint is running"), (("--json",), "null")])
def test_show_without_a_rollout_fails_and_says_so(command, options, printed):
    result, _ = command(httpx.Response(404, json=NONE), "show", "paint", *options)
    assert result.exit_code == 1
    assert result.stdout.startswith(printed)


def test_stop_prints_that_the_rollout_is_stopped_or_that_there_is_none(command):
    stopped, request = command(httpx.Response(204), "stop", "paint")
    missing, _ = command(httpx.Response(404, json=NONE), "stop", "paint")
    assert (stopped.exit_code, stopped.stdout) == (0, "The rollout of paint is stopped.\n")
    assert (request.method, request.url.path) == ("DELETE", "/domains/paint/rollout")
    assert missing.exit_code == 1
    assert "No rollout of paint is running." in missing.stderr


@pytest.mark.parametrize("options", [("--max-disagreement", "1.5"), ("--mode", "both"), ("--min-images", "0")])
def test_values_out_of_range_are_refused_before_a_request(options):
    result = CliRunner().invoke(rollout_app, ["start", "paint", "2", *options])
    assert result.exit_code == 2
