"""Peers: pinned requirements, requests as each wants them, and a result for one that does not run."""

import base64
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.peers import compare, environments, servers
from benchmarks.peers.compare import PeerOptions
from benchmarks.peers.servers import DOMAINS, PEERS, Peer, command_of, loop_rate, started, write_bodies

FOLDER = Path(environments.HERE)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_has_pinned_requirements_or_none_and_a_file_of_its_own(peer):
    if peer.requirements:
        lines = (FOLDER / f"{peer.requirements}.txt").read_text().split()
        assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", line) for line in lines)
    if peer.module:
        assert (FOLDER / f"{peer.module}.py").is_file()


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_sent_the_same_bytes(peer, tmp_path):
    photograph = tmp_path / "one.jpg"
    photograph.write_bytes(b"\xff\xd8 pixels")

    paths, content_type = write_bodies(peer, [photograph], tmp_path)

    if content_type == "image/jpeg":
        assert paths == [str(photograph)]
        return
    assert len(paths) == len(DOMAINS)
    for path in paths:
        body = json.loads(Path(path).read_text())
        image = body["image"] if peer.body == "litserve" else body["input"][0].split(",")[1]
        assert base64.b64decode(image) == photograph.read_bytes()


def test_a_command_names_port_and_dtype(tmp_path):
    for peer in PEERS:
        dtype = peer.dtypes[-1]
        command = command_of(peer, Path("env/bin/python"), ["--dtype", dtype], tmp_path, 1234)
        assert {"1234", dtype} <= set(command)


def fake(module, **changes):
    """A peer that is a Python module of the standard library."""
    values = {
        "requirements": "",
        "package": "rich",
        "health": "/",
        "path": "/",
        "headers": {},
        "body": "raw",
        "note": "",
    }
    return Peer("fake", module=module, **(values | changes))


def test_a_peer_that_dies_says_its_last_words():
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(BenchError, match=r"fake did not become ready.*no such model"),
        started(fake("x"), command, 1, 1),
    ):
        pytest.fail("it never became ready")


def test_nothing_of_a_peer_runs_on_afterwards():
    port = servers.new_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with started(fake("http.server"), command, 1, port) as url:
        assert url.endswith(str(port))
    with (
        pytest.raises(BenchError, match="did not become ready"),
        started(fake("x"), [sys.executable, "-c", ""], 1, port),
    ):
        pytest.fail("the port still answers")


def test_a_loop_tells_its_own_rate():
    assert loop_rate([sys.executable, "-c", "print('{\"images_per_s\": 2.5}')"], 1) == 2.5
    with pytest.raises(BenchError, match="broken"):
        loop_rate([sys.executable, "-c", "raise SystemExit('broken')"], 1)


def test_the_result_holds_a_ratio_per_peer_and_why_one_did_not_run():
    found = {
        "litserve, float32": {
            "version": "litserve 1",
            "ours_per_s": [10.0, 12.0],
            "note": "",
            "per_s": 5.0,
            "p50_ms": 1.0,
            "p99_ms": 2.0,
            "n_failed": 0,
        },
        "ray, float32": {"version": "ray", "failed": "no wheel for this machine"},
    }

    report = compare._report(PeerOptions(), found)

    assert report.as_object()["ratios"] == {"ours_vs_litserve_float32": pytest.approx(2.2)}
    assert "no wheel for this machine" in report.markdown()


def test_a_requirement_that_cannot_be_installed_is_told(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "nothing.txt").write_text("./no-such-folder\n")
    monkeypatch.setattr(environments, "HERE", tmp_path / "here")

    with pytest.raises(BenchError, match="pip could not install nothing"):
        environments.python_of("nothing", tmp_path / "environments", Console(quiet=True))
