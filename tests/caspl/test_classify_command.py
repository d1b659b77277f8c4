import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from caspl import classify_command
from caspl.classify_command import classify_app, show
from caspl.errors import NotFoundError, ServerError
from caspl.results import Classification, Prediction
from tests.service.fakes import picture


class FakeClient:
    """Stands for `caspl.Client`; fails from call number `fails_at` on."""

    calls = ()
    result = Classification("paint", 3, "sha256:x", (Prediction("red", 0, 0.9),))
    fails_at = 99
    error = ServerError("Model failure", "try again", code="inference_failed")

    def __init__(self, url, *, api_key):
        assert (url, api_key) == ("http://127.0.0.1:8000", None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def classify(self, images, domain, **options):
        self.calls.append((len(images), domain, options))
        if len(self.calls) >= self.fails_at:
            raise self.error
        return [self.result] * len(images)


@pytest.fixture
def run(monkeypatch, tmp_path):
    def invoke(n_files, *options, fails_at=99, error=FakeClient.error):
        monkeypatch.setattr(FakeClient, "calls", [])
        monkeypatch.setattr(FakeClient, "fails_at", fails_at)
        monkeypatch.setattr(FakeClient, "error", error)
        monkeypatch.setattr(classify_command, "Client", FakeClient)
        files = [tmp_path / f"{number}.png" for number in range(n_files)]
        for path in files:
            path.write_bytes(picture())
        return CliRunner().invoke(classify_app, ["paint", *map(str, files), *options])

    return invoke


def test_results_are_printed_as_a_table(run):
    result = run(2, "--labels", "red,blue", "--top-k", "2", "--version", "3")

    assert result.exit_code == 0
    assert "red 90.0%" in result.stdout
    assert FakeClient.calls == [(2, "paint", {"top_k": 2, "labels": ["red", "blue"], "version": 3, "abstain": None})]


def test_results_are_printed_as_json(run):
    result = run(1, "--json")

    (row,) = json.loads(result.stdout)
    assert row["file"].endswith("0.png")
    assert (row["domain"], row["version"], row["digest"], row["error"]) == ("paint", 3, "sha256:x", None)
    assert row["predictions"] == [{"label": "red", "class_id": 0, "probability": 0.9}]
    assert (row["label"], row["abstained"]) == ("red", False)


def test_an_image_that_is_too_uncertain_has_no_label_but_all_predictions(run, monkeypatch):
    guesses = (Prediction("red", 0, 0.4), Prediction("blue", 1, 0.3))
    unsure = Classification("paint", 3, "sha256:x", guesses, abstained=True)
    monkeypatch.setattr(FakeClient, "result", unsure)

    (row,) = json.loads(run(1, "--json", "--abstain", "0.05").stdout)
    assert FakeClient.calls[0][2]["abstain"] == 0.05
    assert (row["label"], row["abstained"], len(row["predictions"])) == (None, True, 2)
    assert " ".join(run(1, "--abstain", "0.05").stdout.split()).count("abstained │ red 40.0%, blue 30.0%") == 1


def test_a_late_failure_keeps_earlier_results_and_stops(run):
    result = run(40, "--json", fails_at=2)

    rows = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [bool(row["error"]) for row in rows] == [False] * 16 + [True] * 24
    assert rows[39]["error"] == {"title": "Model failure", "code": "inference_failed", "detail": "try again"}
    assert len(FakeClient.calls) == 2


def test_a_refused_request_is_one_line(run):
    result = run(1, fails_at=1, error=NotFoundError("No such domain", "see /domains", code="domain_not_found"))

    assert result.exit_code == 1
    assert result.stderr == "error: No such domain: see /domains\n"


def test_a_file_that_cannot_be_read_is_named_before_any_is_sent(run, tmp_path):
    result = run(20, str(tmp_path / "missing.png"))

    assert result.exit_code == 1
    assert f"Cannot read {tmp_path}/missing.png: No such file" in result.stderr
    assert FakeClient.calls == []


def test_a_folder_stands_for_its_images_and_other_files_are_counted(run, tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.png", "sub/a.JFIF", "c.gif", "d.tif", "notes.txt", "@eaDir/e.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    result = run(1, str(folder), "--json")

    assert result.exit_code == 0
    files = [row["file"] for row in json.loads(result.stdout)]
    assert files == [str(tmp_path / "0.png"), str(folder / "b.png"), str(folder / "sub/a.JFIF")]
    line = "2 images; 3 files not read: 1 .gif, 1 .tif, 1 .txt; 1 folder not read: 1 @eaDir"
    assert result.stderr == f"{folder}: {line}\n"


def test_a_folder_without_images_is_a_usage_error(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(0, str(tmp_path / "empty"))

    assert result.exit_code == 2
    assert "no .jfif, .jpe" in result.stderr


def test_text_from_outside_is_shown_as_it_is(tmp_path):
    labels = [Prediction(label, 0, 0.5) for label in ("[/x]", ":dog:", "a\x1b[2Jb")]
    results = [
        Classification("paint", 1, "sha256:x", tuple(labels)),
        Classification("paint", error=NotFoundError("[/y]", "[bold] :cat:", code="x")),
    ]
    console = Console(record=True, width=160)
    show([tmp_path / "[bold]nope.png", tmp_path / "b.png"], results, console)

    text = console.export_text()
    for shown in ("[bold]nope.png", "[/x] 50.0%", ":dog: 50.0%", "a?[2Jb", "[/y]", "[bold] :cat:"):
        assert shown in text
