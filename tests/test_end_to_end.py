"""The whole product as its users meet it: real commands, a real server process, a real client, real photographs."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from tests.openvino_extra import needs_openvino
from tests.stacks import random_bundle

ROOT = Path(__file__).parents[1]
CASPL = [sys.executable, "-P", "-m", "caspl"]
START_TIMEOUT_S = 120


@contextlib.contextmanager
def serving(tmp_path, *arguments):
    """Run `caspl serve` on a free port; yields a client. It must stop cleanly on SIGTERM."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "CASPL_DRAIN_DELAY_S": "0"}
    command = [*CASPL, "serve", "--port", "0", "--store", str(tmp_path / "store"), *arguments]
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, env=environment, cwd=ROOT)
    try:
        with httpx.Client(base_url=_address(process, log), timeout=60) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _address(process, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found.group()
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


def samples(domain):
    return sorted((ROOT / "service" / "demo" / "images" / domain).iterdir())


def post_image(client, path, url):
    kind = "image/png" if path.suffix == ".png" else "image/jpeg"
    return client.post(url, content=path.read_bytes(), headers={"Content-Type": kind})


@pytest.mark.slow
def test_the_demo_answers_with_label_probability_version_and_digest(tmp_path):
    with serving(tmp_path, "--demo") as client:
        domains = [entry["domain"] for entry in client.get("/domains").json()["domains"]]
        assert {"thermal", "satellite"} <= set(domains)
        for path in samples("thermal"):
            answer = post_image(client, path, "/classify/thermal?top_k=3").json()
            (result,) = answer["results"]
            assert len(result["predictions"]) == 3
            assert 0 < result["predictions"][0]["probability"] <= 1
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", answer["digest"])
            assert answer["version"] == 1


@pytest.mark.slow
def test_without_the_extra_openvino_the_server_does_not_start_and_names_the_install_command(tmp_path):
    code = "import sys; sys.modules['openvino'] = None; from caspl.__main__ import main; main()"
    command = [sys.executable, "-P", "-c", code, "serve", "--demo", "--backend", "openvino", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=START_TIMEOUT_S)
    assert done.returncode == 2
    assert "pip install 'caspl-serve[openvino]'" in done.stderr


def classes_of(client):
    """The most probable class of all sample images of two domains and its probability, and the loaded backbone."""
    found = {}
    for domain in ("thermal", "satellite"):
        for path in samples(domain):
            (result,) = post_image(client, path, f"/classify/{domain}?top_k=1").json()["results"]
            (best,) = result["predictions"]
            found[path.parent.name, path.name] = best["label"], best["probability"]
    return found, client.get("/info").json()["backbone"]


@needs_openvino
@pytest.mark.slow
def test_openvino_gives_torchs_answers_and_int8_nearly_the_same(tmp_path):
    found = {}
    for dtype, options in {
        "torch": ("--backend", "torch"),
        "float32": ("--backend", "openvino", "--dtype", "float32"),
        "int8": ("--dtype", "int8"),
    }.items():
        folder = tmp_path / dtype
        folder.mkdir()
        with serving(folder, "--demo", *options) as client:
            found[dtype], backbone = classes_of(client)
        assert backbone["backend"] == ("torch" if dtype == "torch" else "openvino")
        assert backbone["dtype"] == ("int8" if dtype == "int8" else "float32")
        assert ("backend.int8" in (folder / "serve.log").read_text()) is (dtype == "int8")
    for dtype, bound in (("float32", 1e-3), ("int8", 0.1)):
        for image, (label, probability) in found["torch"].items():
            assert found[dtype][image] == (label, pytest.approx(probability, abs=bound)), (dtype, image)


@pytest.mark.slow
def test_swapping_versions_under_load_never_fails_a_request_or_mixes_versions(tmp_path):
    with serving(tmp_path, "--demo") as client:
        (upload,) = (ROOT / "service" / "demo" / "upload").glob("*.safetensors")
        domain = read_bundle(upload.read_bytes()).manifest.domain
        first = client.get(f"/domains/{domain}").json()
        added = client.post(f"/domains/{domain}/versions", content=upload.read_bytes()).json()
        digest_of = {v["version"]: v["digest"] for v in client.get(f"/domains/{domain}/versions").json()["versions"]}
        path, stop, answers = samples(domain)[0], threading.Event(), []

        def ask():
            with httpx.Client(base_url=client.base_url, timeout=60) as own:
                while not stop.is_set():
                    answers.append(post_image(own, path, f"/classify/{domain}"))

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        for turn in range(40):
            version = added["version"] if turn % 2 == 0 else 1
            assert client.put(f"/domains/{domain}/live", json={"version": version}).status_code == 200
        stop.set()
        for asker in askers:
            asker.join()
        assert {answer.status_code for answer in answers} == {200}
        seen = {(answer.json()["version"], answer.json()["digest"]) for answer in answers}
        assert seen <= set(digest_of.items())
        assert len(seen) == 2
        assert first["version"] == 1


@pytest.mark.slow
def test_a_vit_b_16_with_random_weights_serves_photographs_and_refuses_foreign_bundles(tmp_path):
    from skimage import data

    backbone = load_backbone("ViT-B-16", random_seed=0)
    image_prompts = {"image_boost": (9, 8), "text_boost": (9, 8)}
    own = random_bundle("photos", backbone=backbone, **image_prompts)
    foreign = random_bundle("photos")
    with serving(tmp_path, "--backbone", "ViT-B-16", "--random-weights") as client:
        refused = client.post("/domains/photos/versions", content=foreign)
        assert refused.status_code == 409
        assert refused.json()["code"] == "backbone_mismatch"
        assert client.get("/domains/photos").status_code == 404
        created = client.post("/domains/photos/versions?activate=true", content=own)
        assert created.status_code == 201, created.text
        for name in ("astronaut", "chelsea", "coffee"):
            (tmp_path / f"{name}.jpg").write_bytes(_jpeg(getattr(data, name)()))
            answer = post_image(client, tmp_path / f"{name}.jpg", "/classify/photos")
            assert answer.status_code == 200, answer.text
            assert answer.json()["digest"] == read_bundle(own).digest
        opened = post_image(client, tmp_path / "coffee.jpg", "/classify/photos?labels=coffee,cat,rocket")
        labels = {p["label"] for p in opened.json()["results"][0]["predictions"]}
        assert labels <= {"coffee", "cat", "rocket"}


def _jpeg(array):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.slow
def test_boost_add_activate_and_classify_from_the_command_line(tmp_path):
    folder = tmp_path / "thermal"
    run("python", "-m", "training.demo", "write-folder", "thermal", folder, "--n-train", 12, "--n-test", 0)
    bundle = tmp_path / "thermal.safetensors"
    result = run(
        "caspl", "boost", "--images", folder / "train", "--classes", folder / "classes.txt", "--domain", "thermal",
        "--out", bundle, "--backbone", "demo-student", "--teacher", "demo-teacher",
        "--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "batch_size=4",
        "--set", "image_tokens=2", "--set", "text_tokens=4", "--holdout", 0, "--json",
    )  # fmt: skip
    assert json.loads(result)["steps"] == 3
    assert "thermal" in run("caspl", "bundle", "inspect", bundle)
    store = tmp_path / "store"
    run("caspl", "store", "add", bundle, "--store", store)
    run("caspl", "store", "activate", "thermal", 1, "--store", store)
    with serving(tmp_path, "--backbone", "demo-student") as client:
        image = next(iter((folder / "train").iterdir()))
        shown = run("caspl", "classify", image, "--domain", "thermal", "--url", client.base_url)
    assert image.name in shown


def run(program, *arguments):
    command = CASPL if program == "caspl" else [sys.executable]
    finished = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout
