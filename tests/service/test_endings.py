"""How the real process ends: drained, hung, with a lost device; in one process and with web processes."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests.service.fakes import picture
from tests.service.processes import ConcurrentClients, children, client_of, command_of, environment, eventually, serving

pytestmark = pytest.mark.slow
in_both_forms = pytest.mark.parametrize("web_workers", [0, 1], ids=["one process", "web process"])

N_RESTARTS = 20
FORKS = """
import os, sys
import tests.service.fakes
from service import server

serve = sys.argv.pop(1)
for line in sys.stdin:
    if os.fork() == 0:
        exec(serve)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
"""Runs the script that is its first argument in a new process for every line; torch is imported once."""


@pytest.mark.slow
@in_both_forms
@pytest.mark.timeout(600)
def test_no_request_that_was_accepted_is_lost_in_20_restarts_under_load(store, web_workers):
    settings = {"web_workers": web_workers, "drain_delay_s": 0.5}
    command = command_of(store, once_ready="model.forward_s = 0.01", **settings)
    command[2:3] = [FORKS, command[2]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), text=True, **pipes) as parent:
        for n in range(N_RESTARTS):
            parent.stdin.write("restart\n")
            parent.stdin.flush()
            url = parent.stdout.readline().strip()
            (pid,) = children(parent.pid)
            with ConcurrentClients(url) as clients:
                eventually(lambda: len(clients.answers) > 10)
                time.sleep(n / 200)
                os.kill(pid, signal.SIGTERM)
                assert parent.stdout.readline() == "0\n", f"exit status of restart {n}"
            assert set(clients.answers) == {200}, f"restart {n}"
            assert clients.broken == [], f"restart {n}"
        parent.stdin.close()


@pytest.mark.slow
@in_both_forms
def test_requests_that_the_drain_timeout_cuts_off_are_503(store, web_workers):
    settings = {"web_workers": web_workers, "drain_delay_s": 0, "drain_timeout_s": 1, "default_timeout_s": 30}
    with serving(store, once_ready="model.gate.clear()", **settings) as (process, url):
        address = url.removeprefix("http://").split(":")
        body = picture()
        head = f"POST /classify/paint HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((address[0], int(address[1])), timeout=30) as cut, cut.makefile("rb") as reading:
            cut.sendall(head + body)
            with client_of(url) as client:
                metric = 'caspl_rows_entered_total{priority="normal"} 1.0'
                eventually(lambda: metric in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            answer = reading.read()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b'"draining"' in answer
        assert process.wait(30) == 70, "the device still hangs"


FAILURES = {
    "device_lost": "model.lost_with = model.fail_with = RuntimeError('CUDA error: device-side assert triggered')",
    "device_stuck": "model.gate.clear()",
    "event_loop_stuck": "asyncio.get_running_loop().call_later(0.2, time.sleep, 600)",
}


@pytest.mark.slow
@in_both_forms
@pytest.mark.parametrize("reason", FAILURES)
def test_a_process_that_cannot_go_on_logs_the_reason_and_exits_with_70(store, tmp_path, reason, web_workers):
    settings = {"web_workers": web_workers, "stuck_after_s": 5, "log_format": "json"}
    with (
        (tmp_path / "log").open("wb") as log,
        serving(store, once_ready=FAILURES[reason], log=log, **settings) as (
            process,
            url,
        ),
    ):
        if reason != "event_loop_stuck":
            with client_of(url) as client:
                answer = client.post("/classify/paint", content=picture())
                assert answer.status_code in {503, 504}
        assert process.wait(30) == 70
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (failed,) = [line for line in lines if line["event"] == "server.failed"]
    assert (failed["level"], failed["reason"]) == ("critical", reason)


@in_both_forms
def test_a_graceful_stop_writes_json_lines_only(store, tmp_path, web_workers):
    settings = {"web_workers": web_workers, "log_format": "json", "log_level": "info", "drain_delay_s": 0}
    warn = "import warnings; warnings.warn('from a library')"
    with (tmp_path / "log").open("wb") as log, serving(store, once_ready=warn, log=log, **settings) as (process, url):
        with client_of(url) as client:
            assert client.post("/classify/paint", content=picture()).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert "request.answered" in [line["event"] for line in lines]
    assert any("from a library" in line["event"] for line in lines)
