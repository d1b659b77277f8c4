"""A rollout on two real servers of one store: start, decision and end reach the other one, and a restart."""

import time

import pytest

from service.demo.files import ASSETS
from service.demo.process import running, stop

CANDIDATE = ASSETS / "upload" / "thermal-promptsrc.safetensors"
PICTURES = [path.read_bytes() for path in sorted((ASSETS / "images" / "thermal").iterdir())]
WITHIN_S = 30.0


def eventually(found):
    """The first true value within half a minute."""
    give_up_s = time.monotonic() + WITHIN_S
    while not (value := found()):
        assert time.monotonic() < give_up_s
        time.sleep(0.1)
    return value


def answer(server, number=0):
    response = server.post("/classify/thermal", content=PICTURES[number % len(PICTURES)])
    response.raise_for_status()
    body = response.json()
    return body["version"], body.get("is_candidate", False)


def start(server, **plan):
    body = {"version": 2, "mode": "canary", "percent": 100, "max_disagreement": 1, "max_confidence_shift": 1} | plan
    server.post("/domains/thermal/rollout", json=body).raise_for_status()


def has_rollout(server):
    return server.get("/domains/thermal/rollout").status_code == 200


@pytest.mark.slow
def test_servers_of_one_store_follow_start_decision_and_stop_and_a_restart_keeps_the_rollout(tmp_path):
    options = ["--store", str(tmp_path / "store")]
    with running(ASSETS, options) as (_, first):
        first.post("/domains/thermal/versions", content=CANDIDATE.read_bytes()).raise_for_status()
        with running(ASSETS, options) as (process, second):
            start(first)
            eventually(lambda: has_rollout(second))
            assert (answer(first), answer(second)) == ((2, True), (2, True))
            stop(process)
        with running(ASSETS, options) as (_, second):
            assert answer(second) == (2, True)
            second.delete("/domains/thermal/rollout").raise_for_status()
            assert answer(second) == (1, False)
            eventually(lambda: not has_rollout(first))
            assert answer(first) == (1, False)

            start(first, max_confidence_shift=0, min_images=4)
            eventually(lambda: has_rollout(second))
            for number in range(100):
                answer(second, number)
                if not has_rollout(second):
                    break
            eventually(lambda: not has_rollout(first) and not has_rollout(second))
            assert (answer(first), answer(second)) == ((1, False), (1, False))
            history = first.get("/domains/thermal/history").json()["history"]
    assert [one["action"] for one in history[-4:]] == [
        "rollout start",
        "rollout stop",
        "rollout start",
        "rollout rollback",
    ]
    assert "confidence shift" in history[-1]["detail"]
