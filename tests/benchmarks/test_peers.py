"""Peers: pinned requirements, equal photographs, the better layout, and a result for one that does not run."""

import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.peers import compare, environments
from benchmarks.peers.compare import PeerOptions, report_of
from benchmarks.peers.servers import PEERS, Peer, started, write_bodies
from benchmarks.report import markdown
from benchmarks.server import FORM, free_port

FOLDER = Path(environments.HERE)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_has_pinned_requirements_and_a_file_of_its_own(peer):
    lines = (FOLDER / f"{peer.package}.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", line) for line in lines)
    assert (FOLDER / f"{peer.module}.py").is_file()


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_sent_the_same_bytes(peer, tmp_path):
    photograph = tmp_path / "one.jpg"
    photograph.write_bytes(b"\xff\xd8 pixels")

    paths, content_type = write_bodies(peer, [photograph], tmp_path)

    bodies = [Path(path).read_bytes() for path in paths]
    if content_type == "image/jpeg":
        assert bodies == [photograph.read_bytes()]
    else:
        assert content_type == FORM
        assert all(photograph.read_bytes() in body for body in bodies)


FAKE = Peer(name="fake", package="rich", module="x", note="", health="/")


def test_a_peer_that_dies_reports_the_end_of_its_log():
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(BenchError, match=r"fake did not become ready.*no such model"),
        started(FAKE, command, workers=1, threads=1, port=1),
    ):
        pytest.fail("it never became ready")


def test_nothing_of_a_peer_runs_on_afterwards():
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with started(FAKE, command, workers=1, threads=1, port=port) as url:
        assert url.endswith(str(port))
    with (
        pytest.raises(BenchError, match="did not become ready"),
        started(FAKE, [sys.executable, "-c", ""], workers=1, threads=1, port=port),
    ):
        pytest.fail("the port still answers")


def test_the_faster_layout_counts_and_is_named(monkeypatch):
    rates = {(1, 2): 5.0, (2, 1): 6.0}

    def run(*_, workers, threads):
        return {"per_s": rates[workers, threads], "p50_ms": 1.0, "p99_ms": 2.0, "n_failed": 0}

    class FakeServer:
        def closed_rate(self, *_):
            return 9.0

    monkeypatch.setattr(compare, "run", run)
    monkeypatch.setattr(compare, "python_of", lambda *_: sys.executable)
    row = compare.compare(FakeServer(), FAKE, "float32", PeerOptions(), Console(quiet=True))

    assert (row["layout"], row["per_s"], row["ours_per_s"]) == ("2 x 1", 6.0, [9.0, 9.0])
    assert row["tried"] == {"1 x 2": 5.0, "2 x 1": 6.0}


def row(**changes):
    about = {"peer": "litserve", "dtype": "float32", "note": "", "clients": 4, "package": "litserve 1"}
    about |= {"command": "caspl bench peers --peers litserve", "date": "2026-01-02", "commit": "abcdef0"}
    measured = {"per_s": 5.0, "p50_ms": 1.0, "p99_ms": 2.0, "n_failed": 0, "layout": "2 x 1"}
    return about | measured | {"ours_per_s": [10.0, 12.0]} | changes


def test_every_row_keeps_its_own_command_date_and_commit():
    rows = {"litserve, float32": row(), "ray, float32": row(peer="ray", date="2026-03-04", command="other command")}

    report = report_of(PeerOptions(), rows)

    assert report.numbers["vs_litserve_float32"]["value"] == pytest.approx(2.2)
    text = markdown(report.as_object())
    assert "2026-01-02 | abcdef0 | `caspl bench peers --peers litserve`" in text
    assert "2026-03-04 | abcdef0 | `other command`" in text


def test_a_peer_that_does_not_run_has_the_reason_as_its_result():
    failed = {key: value for key, value in row(peer="ray").items() if key not in ("per_s", "layout", "ours_per_s")}

    report = report_of(PeerOptions(), {"ray, float32": failed | {"failed": "no wheel for this machine"}})

    assert not report.numbers
    assert "does not run: no wheel for this machine" in markdown(report.as_object())


def test_a_requirement_that_cannot_be_installed_is_reported(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "nothing.txt").write_text("./no-such-folder\n")
    monkeypatch.setattr(environments, "HERE", tmp_path / "here")

    with pytest.raises(BenchError, match="pip could not install nothing"):
        environments.python_of("nothing", tmp_path / "environments", Console(quiet=True))
