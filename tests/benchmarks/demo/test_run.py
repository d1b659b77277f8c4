"""`make demo`: its steps, and its output."""

import io
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from rich.console import Console

from benchmarks.demo.accuracy import LabelledImage, Measured, measure, read_labelled
from benchmarks.demo.run import DOMAINS as DEMO_DOMAINS
from benchmarks.demo.run import boosting_training, finish, packaged, start_command
from benchmarks.demo.screen import Step, show_accuracy, show_first_images
from caspl import CasplError, Client, Prediction
from prompt_store.bundle import read_bundle
from service.demo.process import DemoError
from tests.service.fakes import picture


@pytest.mark.slow
def test_the_demo_shows_rising_accuracy_and_swaps_under_traffic():
    command = [sys.executable, "-P", "-m", "benchmarks.demo.run", "--shots", "4", "--n-test", "100"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {
        name: [float(number) for number in re.findall(r"([\d.]+)%", line)[: len(DEMO_DOMAINS)]]
        for name, line in re.findall(r"│ (plain student|\+ boosting prompts|\+ caspl fit) +(│ +[\d.]+%.*)", run.stdout)
    }
    plain, boosted, fitted = rows.values()
    for place in range(len(DEMO_DOMAINS)):
        assert plain[place] < boosted[place]
        assert fitted[place] >= boosted[place] - 2
    swap = "sketch version 3, satellite version 3 went live; (\\d+) requests ran meanwhile, 0 failed"
    assert int(re.search(swap, run.stdout)[1]) > 5
    assert "http://localhost:8000/" in run.stdout
    assert len(run.stdout.splitlines()) <= 40


@pytest.mark.slow
def test_a_kept_demo_serves_until_it_is_interrupted():
    command = [sys.executable, "-P", "-m", "benchmarks.demo.run", "--shots", "1", "--n-test", "16", "--keep"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            url = next(found[1] for line in process.stdout if (found := re.search(r"running at (http\S+)", line)))
            assert [httpx.get(f"{url}domains/{name}").json()["version"] for name in DEMO_DOMAINS] == [3, 3]
            os.killpg(process.pid, signal.SIGINT)
            assert "caspl serve --demo" in process.stdout.read()
            assert process.wait() == 0
        finally:
            process.kill()


def test_a_failed_command_of_the_demo_is_reported_with_its_output():
    with pytest.raises(DemoError, match=r"Drawing failed:\n(.*\n)*.*can't open 'nowhere'"):
        finish(start_command("json.tool", "nowhere"), "Drawing")


def measured(version, labels):
    predictions = [[Prediction(label, 0, 0.75)] for label in labels]
    return Measured("paint", version, 0.5, predictions, 1.0)


def test_the_demo_shows_labels_as_they_are(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    steps = [Step("plain", "none", [measured(1, ["[/x]"])]), Step("fitted", "few", [measured(2, [":dog:"])])]
    show_accuracy(console, steps, n_images=100, n_classes=2)
    show_first_images(console, steps, {"paint": LabelledImage(tmp_path / "1.png", "[/x]")})
    shown = " ".join(console.file.getvalue().split())
    assert "100 test images per domain, 2 classes (chance 50.00%)" in shown
    for text in ("50.0%", "at most 5.0 points", "paint: [/x]", "[/x] 75% ✓", ":dog: 75%"):
        assert text in shown


def test_the_training_of_the_packaged_prompts_is_read_from_their_bundles():
    metrics = [read_bundle(packaged(name).read_bytes()).manifest.provenance.metrics for name in DEMO_DOMAINS]
    assert boosting_training(metrics) == "4,000 unlabelled images, 2,250 steps, packaged"


def test_labelled_images_are_read_in_the_order_of_drawing(tmp_path):
    for name in ("red_cup/00002.png", "blue_cup/00001.png", "red_cup/00000.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    assert [image.true_class for image in read_labelled(tmp_path)] == ["red cup", "blue cup", "red cup"]
    with pytest.raises(DemoError, match="No images in"):
        read_labelled(tmp_path / "red_cup")


def paint_service(handle):
    return Client("http://demo", retry_for_s=0, transport=httpx.MockTransport(handle))


def result_of(**changes):
    return {"predictions": [{"label": "cup", "class_id": 0, "probability": 1.0}], "notes": [], "error": None} | changes


def test_accuracy_is_measured_on_every_image_with_the_given_version(tmp_path):
    (tmp_path / "1.png").write_bytes(picture())
    images = [LabelledImage(tmp_path / "1.png", label) for label in ["cup"] * 15 + ["pan"] * 5]
    sizes = []

    def handle(request):
        n_images = request.read().count(b'name="images"')
        sizes.append((request.url.params["version"], n_images))
        body = {"domain": "paint", "version": 2, "digest": "sha256:0", "results": [result_of()] * n_images}
        return httpx.Response(200, json=body)

    found = measure(paint_service(handle), "paint", images, 2)
    assert sorted(sizes) == [("2", 4), ("2", 16)]
    assert (found.accuracy, len(found.predictions)) == (0.75, 20)


REJECTED = result_of(predictions=[], error={"code": "image_damaged", "title": "Invalid image", "detail": "busy"})


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(503, json={"code": "overloaded", "title": "Server overloaded", "detail": "busy"}),
        httpx.Response(200, json={"domain": "paint", "version": 1, "digest": "sha256:0", "results": [REJECTED]}),
    ],
    ids=["request", "image"],
)
def test_a_failed_image_fails_the_demo(tmp_path, reply):
    (tmp_path / "1.png").write_bytes(picture())
    with pytest.raises(CasplError, match="busy"):
        measure(paint_service(lambda _: reply), "paint", [LabelledImage(tmp_path / "1.png", "cup")], 2)
