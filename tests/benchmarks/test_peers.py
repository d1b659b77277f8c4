"""Peers: pinned requirements, equal photographs, the better layout, and a result for one that does not run."""

import base64
import io
import json
import os
import re
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks.answers import Answer
from benchmarks.errors import BenchError
from benchmarks.peers import compare, environments, pixels
from benchmarks.peers.agreement import class_of
from benchmarks.peers.bodies import DATA_URI, MULTIPART, TRITON, TRITON_HEADER_BYTES
from benchmarks.peers.classifier import Classifier
from benchmarks.peers.compare import PeerOptions, report_of
from benchmarks.peers.plain_clip import PlainClip
from benchmarks.peers.servers import DOMAINS, PEERS, Peer, Running, paused, started, write_bodies
from benchmarks.report import markdown
from benchmarks.server import Server, free_port
from tests.openvino_extra import assert_no_usage_statistics, needs_openvino
from tests.tiny import register_tiny_models

FOLDER = Path(environments.HERE)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_has_pinned_requirements_and_a_file_of_its_own(peer):
    lines = (FOLDER / f"{peer.package}.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", line) for line in lines)
    assert (FOLDER / f"{peer.module}.py").is_file()


@pytest.fixture
def photographs(tmp_path):
    paths = [tmp_path / f"{name}.jpg" for name in ("one", "two")]
    for path in paths:
        path.write_bytes(b"\xff\xd8 pixels of " + path.stem.encode())
    return paths


def jpeg_in(peer, body):
    """The file in a request body."""
    if peer.body is DATA_URI:
        return base64.b64decode(json.loads(body)["input"][0].partition("base64,")[2])
    begin = body.index(b"\xff\xd8")
    return body[begin : body.index(b"\r\n--", begin)] if peer.body is MULTIPART else body[begin:]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_sent_the_bytes_and_domains_of_our_own_load_in_the_same_order(peer, photographs, tmp_path):
    ours = Server("http://127.0.0.1:9", None, DOMAINS, photographs).load()

    bodies, domains = write_bodies(peer, photographs, tmp_path / "x")

    assert domains == ours.domains[: len(domains)]
    assert set(domains) == set(DOMAINS)
    sent = [jpeg_in(peer, Path(path).read_bytes()) for path in bodies]
    assert sent == [photographs[number % len(photographs)].read_bytes() for number in range(len(bodies))]


def test_a_multipart_body_names_the_domain_of_its_request(photographs, tmp_path):
    peer = next(peer for peer in PEERS if peer.body is MULTIPART)

    bodies, domains = write_bodies(peer, photographs, tmp_path / "x")

    for path, domain in zip(bodies, domains, strict=True):
        assert f'name="domain"\r\n\r\n{domain}\r\n' in Path(path).read_bytes().decode("latin-1")


def test_a_body_for_triton_is_a_header_of_fixed_length_and_a_string_with_its_length():
    jpeg = b"\xff\xd8" + bytes(range(256))

    body = TRITON.write(jpeg, 5)

    header = json.loads(body[:TRITON_HEADER_BYTES])
    image, domain = header["inputs"]
    assert image["parameters"]["binary_data_size"] == len(body) - TRITON_HEADER_BYTES
    assert domain["data"] == [5]
    assert int.from_bytes(body[TRITON_HEADER_BYTES:][:4], "little") == len(jpeg)
    assert body[TRITON_HEADER_BYTES + 4 :] == jpeg


@pytest.mark.parametrize("size", [(640, 480), (300, 451), (224, 224)])
def test_converted_models_get_the_pixels_of_open_clips_transform(size):
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file, "jpeg")
    transform = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))

    found = pixels.decode(file.getvalue(), 224)

    expected = transform(Image.open(file)).permute(1, 2, 0).numpy() * 255
    assert np.array_equal(found, expected.round().astype(np.uint8))


def test_the_converted_module_has_the_answers_of_the_plain_model():
    register_tiny_models()
    plain, module = PlainClip("tiny", "float32", 1), Classifier("tiny", 1)
    side = module.side
    pixels_BHWC = torch.randint(256, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = [plain.transform.transforms[-1](one.permute(2, 0, 1) / 255) for one in pixels_BHWC]

    with torch.inference_mode():
        best = module(pixels_BHWC, torch.tensor([2, 0, 7])).max(dim=-1)

    expected = plain.classify(images, [2, 0, 7])
    assert best.indices.tolist() == [answer["class_id"] for answer in expected]
    assert best.values.tolist() == pytest.approx([answer["probability"] for answer in expected], rel=1e-5)


def test_a_class_is_read_from_a_field_or_from_an_output_tensor():
    outputs = [{"name": "probability", "data": [0.5]}, {"name": "class_id", "data": [3]}]

    assert class_of({"class_id": 3, "probability": 0.5}) == class_of({"outputs": outputs}) == 3


FAKE = Peer(name="fake", package="rich", module="x", note="", health="/")


def test_a_peer_that_dies_reports_the_end_of_its_log():
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(BenchError, match=r"fake did not become ready.*no such model"),
        started(FAKE, command, workers=1, threads=1, port=1),
    ):
        pytest.fail("it never became ready")


def test_a_paused_server_answers_only_afterwards():
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with started(FAKE, command, workers=1, threads=1, port=port) as running:
        with (
            paused(partial(os.killpg, running.group)),
            pytest.raises(httpx.ReadTimeout),
        ):
            httpx.get(running.url, timeout=0.5, trust_env=False)
        assert httpx.get(running.url, timeout=30, trust_env=False).is_success


def test_nothing_of_a_peer_runs_on_afterwards():
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with started(FAKE, command, workers=1, threads=1, port=port) as running:
        assert running.url.endswith(str(port))
    with (
        pytest.raises(BenchError, match="did not become ready"),
        started(FAKE, [sys.executable, "-c", ""], workers=1, threads=1, port=port),
    ):
        pytest.fail("the port still answers")


class FakeServer:
    """Our server in a comparison, which notes its turns."""

    def __init__(self, turns, photographs):
        self.turns, self.photographs, self.pid = turns, photographs, os.getpid()

    def closed_rate(self, *_):
        self.turns.append("ours")
        return 9.0


@pytest.fixture
def faked(monkeypatch, photographs):
    """A comparison without processes: the turns, and a function that runs it."""
    turns = []
    rates = {"1 x 2": 5.0, "2 x 1": 6.0}

    @contextmanager
    def started(peer, command, *, workers, threads, port):
        turns.append(f"{workers} x {threads}")
        yield Running(turns[-1], group=1)

    def send(load):
        turns.append(f"peer {load.duration_s:g} s")
        per_s = rates[load.url]
        ends = [(number + 1) / per_s for number in range(round(load.duration_s * per_s) + 1)]
        return [Answer(end_s - 1 / per_s, end_s - 1 / per_s, end_s, 200, "0") for end_s in ends]

    monkeypatch.setattr(compare, "started", started)
    monkeypatch.setattr(compare, "send", send)
    monkeypatch.setattr(compare, "agreement", lambda *_: 1.0)
    monkeypatch.setattr(compare, "python_of", lambda *_: sys.executable)

    @contextmanager
    def paused(kill):
        turns.append("others stop")
        yield
        turns.append("others go on")

    monkeypatch.setattr(compare, "paused", paused)

    def run(**options):
        options = PeerOptions(**{"seconds": 4.0} | options)
        return compare.compare(FakeServer(turns, photographs), FAKE, "float32", {}, options, Console(quiet=True))

    return turns, run


def test_the_faster_layout_is_measured_three_times_in_turn_with_ours(faked):
    turns, run = faked

    row = run()

    assert row["layout"] == "2 x 1"
    assert row["tried"] == pytest.approx({"1 x 2": 5.0, "2 x 1": 6.0})
    assert (row["per_s"], row["ours_per_s"]) == (pytest.approx([6.0] * 3), [9.0] * 3)
    stop, go_on = "others stop", "others go on"
    tried = [stop, "peer 3 s", "peer 2 s", go_on]
    turn = [stop, "ours", go_on, stop, "peer 4 s", go_on]
    assert turns == ["1 x 2", *tried, "2 x 1", *tried, "2 x 1", "peer 3 s", *turn, *turn, *turn]


def test_a_loop_that_was_too_short_is_repeated_at_four_times_the_length(faked):
    turns, run = faked

    run(seconds=0.1)  # an answer takes a fifth of a second

    assert turns[:5] == ["1 x 2", "others stop", "peer 3 s", "peer 0.05 s", "peer 0.2 s"]


def test_a_float32_peer_with_other_classes_is_no_comparison(faked, monkeypatch):
    monkeypatch.setattr(compare, "agreement", lambda *_: 0.5)

    row = faked[1]()

    assert row["failed"] == "fake has the expected class in 50% of the answers only"


def test_settings_of_ours_are_in_the_name_of_the_row_and_may_change_the_dtype(faked):
    row = faked[1](extra=(("dtype", "int8"), ("backend", "openvino")))

    assert row["name"] == "fake, float32, against int8 backend=openvino"
    assert (
        PeerOptions(extra=(("dtype", "int8"), ("backend", "openvino"))).ours("float32").variables()["CASPL_BACKEND"]
        == "openvino"
    )
    assert PeerOptions().ours("float32").dtype == "float32"


def test_a_dtype_that_no_chosen_peer_serves_is_refused():
    with pytest.raises(BenchError, match="no peer serves 'int8': ray has bfloat16, float32"):
        PeerOptions(names=("ray",)).peers("int8")

    assert {peer.name for peer in PeerOptions().peers("int8")} == {"litserve-ours", "openvino", "onnxruntime"}


def row(**changes):
    about = {"peer": "litserve", "dtype": "float32", "note": "", "clients": 4, "package": "litserve 1"}
    about |= {"command": "caspl bench peers --peers litserve", "date": "2026-01-02", "commit": "abcdef0"}
    about |= {"ours": {"dtype": "float32"}, "agreement": 1.0}
    measured = {"per_s": [5.0, 5.0, 6.0], "p50_ms": 1.0, "p99_ms": 2.0, "n_failed": 0, "layout": "2 x 1"}
    return about | measured | {"ours_per_s": [10.0, 12.0, 11.0]} | changes


def test_every_row_keeps_its_own_command_date_and_commit():
    rows = {"litserve, float32": row(), "ray, float32": row(peer="ray", date="2026-03-04", command="other command")}

    report = report_of(PeerOptions(), rows)

    assert report.numbers["vs_litserve_float32"]["value"] == pytest.approx(2.0)
    text = markdown(report.as_object())
    assert "2026-01-02 | abcdef0 | `caspl bench peers --peers litserve`" in text
    assert "2026-03-04 | abcdef0 | `other command`" in text


def test_a_peer_that_does_not_run_has_the_reason_as_its_result():
    failed = {key: value for key, value in row(peer="ray").items() if key not in ("per_s", "layout", "ours_per_s")}

    report = report_of(PeerOptions(), {"ray, float32": failed | {"failed": "no wheel for this machine"}})

    assert not report.numbers
    assert "does not run: no wheel for this machine" in markdown(report.as_object())


@needs_openvino
@pytest.mark.slow
def test_the_openvino_peer_sends_no_usage_statistics(tmp_path):
    assert_no_usage_statistics("import benchmarks.peers.openvino_fastapi", tmp_path)


def test_rows_of_an_older_version_are_not_mixed_with_new_ones(tmp_path):
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"samples": {"rows": {"ray, float32": row(per_s=5.0)}}}))

    with pytest.raises(BenchError, match="rows of an older version, without turns"):
        compare.kept_rows(path)


def test_a_requirement_that_cannot_be_installed_is_reported(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "nothing.txt").write_text("./no-such-folder\n")
    monkeypatch.setattr(environments, "HERE", tmp_path / "here")

    with pytest.raises(BenchError, match="pip could not install nothing"):
        environments.python_of("nothing", tmp_path / "environments", Console(quiet=True))
