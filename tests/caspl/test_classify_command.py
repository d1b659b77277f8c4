"""`caspl classify` with a server in memory; `test_classifying_through_restarts.py` has a real one."""

import csv
import errno
import functools
import json

import httpx
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import caspl
from caspl import classify_command
from caspl.classify_command import classify_app, show
from caspl.errors import NotFoundError
from caspl.results import Classification, Prediction
from caspl.terminal import exit_on_error
from tests.service.fakes import picture

RED = {"predictions": [{"label": "red", "class_id": 0, "probability": 0.9}], "error": None, "notes": []}
DAMAGED = {"title": "Invalid image", "detail": "It is damaged.", "code": "image_undecodable", "status": 422}
NO_DOMAIN = httpx.Response(404, json={"title": "No such domain", "detail": "see /domains", "code": "domain_not_found"})
FAILED = httpx.Response(500, json={"title": "Model failure", "code": "inference_failed", "detail": "try again"})


class Server:
    """A server in memory: every PNG is red; requests with one of the contents `fails_for` get the answer `failure`."""

    def __init__(self, fails_for=(), failure=FAILED, result=RED):
        self.fails_for, self.failure, self.result = fails_for, failure, result
        self.requests, self.n_images = [], 0

    def __call__(self, request):
        self.requests.append(request)
        if any(content in request.content for content in self.fails_for):
            return self.failure
        boundary = request.content.split(b"\r\n", 1)[0]
        parts = request.content.split(boundary)[1:-1]
        self.n_images += len(parts)
        errors = [None if b"PNG" in part else DAMAGED for part in parts]
        if all(errors):
            return httpx.Response(422, json={"code": "images_rejected", "errors": errors})
        results = [{"predictions": [], "error": error, "notes": []} if error else self.result for error in errors]
        body = {"domain": "paint", "version": 3, "digest": "sha256:x", "results": results}
        return httpx.Response(200, json=body)


@pytest.fixture
def run(monkeypatch, tmp_path):
    def invoke(server, *arguments):
        client = functools.partial(caspl.AsyncClient, transport=httpx.MockTransport(server))
        monkeypatch.setattr(classify_command, "AsyncClient", client)
        monkeypatch.chdir(tmp_path)
        return CliRunner().invoke(
            classify_app, [*map(str, arguments), "--domain", "paint"], env={"COLUMNS": "200"}, catch_exceptions=False
        )

    return invoke


@pytest.fixture
def files(tmp_path):
    """Forty pictures, each with other bytes."""
    paths = [tmp_path / f"{number:02}.png" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(picture(size=(20 + number, 24)))
    return paths


def csv_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_results_are_printed_as_a_table(run, files):
    server = Server()
    result = run(server, *files[:2], "--labels", "red,blue", "--top-k", "2", "--version", "3")

    assert result.exit_code == 0
    assert "red 90.0%" in result.stdout
    assert str(server.requests[0].url.query, "ascii") == "top_k=2&labels=red&labels=blue&version=3"
    assert result.stderr == "2 pictures classified, 0 with an error\n"


def test_results_are_printed_as_json(run, files):
    result = run(Server(), files[0], "--json")

    (row,) = json.loads(result.stdout)
    assert row["file"].endswith("00.png")
    assert (row["domain"], row["version"], row["digest"], row["error"]) == ("paint", 3, "sha256:x", None)
    assert row["predictions"] == [{"label": "red", "class_id": 0, "probability": 0.9}]
    assert (row["label"], row["abstained"]) == ("red", False)


def test_an_image_that_is_too_uncertain_has_no_label_but_all_predictions(run, files):
    guesses = [{"label": name, "class_id": 0, "probability": share} for name, share in (("red", 0.4), ("blue", 0.3))]
    server = Server(result={"predictions": guesses, "error": None, "notes": [], "abstained": True})

    (row,) = json.loads(run(server, files[0], "--json", "--abstain", "0.05").stdout)
    assert server.requests[0].url.params["abstain"] == "0.05"
    assert (row["label"], row["abstained"], len(row["predictions"])) == (None, True, 2)
    table = run(server, files[0], "--abstain", "0.05").stdout
    assert " ".join(table.split()).count("abstained │ red 40.0%, blue 30.0%") == 1


def test_a_late_failure_keeps_earlier_results_and_stops(run, files):
    result = run(Server([path.read_bytes() for path in files[16:]]), *files, "--json")

    rows = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [bool(row["error"]) for row in rows] == [False] * 16 + [True] * 24
    assert rows[39]["error"] == {"title": "Model failure", "code": "inference_failed", "detail": "try again"}
    assert "16 pictures classified, 0 with an error, 24 without a result\n" in result.stderr
    assert "error: Model failure: try again\n" in result.stderr


def test_a_refused_request_is_one_line(run, files):
    result = run(Server([b"PNG"], failure=NO_DOMAIN), files[0])

    assert result.exit_code == 1
    assert result.stderr == "error: No such domain: see /domains\n"


def test_a_path_that_does_not_exist_is_named_before_any_picture_is_sent(run, files, tmp_path):
    server = Server()
    result = run(server, *files, tmp_path / "missing.png")

    assert result.exit_code == 1
    assert f"Cannot read {tmp_path}/missing.png: No such file" in result.stderr
    assert server.requests == []


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.png", "sub/a.JFIF", "c.gif", "d.tif", "notes.txt", "@eaDir/e.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    return folder


def test_a_folder_stands_for_its_own_pictures_and_other_files_are_counted(run, photos):
    result = run(Server(), "photos", "--json")

    assert [row["file"] for row in json.loads(result.stdout)] == ["photos/b.png"]
    line = "3 files not read: 1 .gif, 1 .tif, 1 .txt; 1 folder not read: 1 @eaDir"
    line = f"photos: 1 pictures; {line}; 1 subfolder not read without --recursive"
    assert result.stderr.splitlines()[0] == line


def test_recursive_includes_subfolders_and_a_file_that_is_named_twice_is_read_once(run, photos):
    result = run(Server(), "photos/b.png", "photos", "--recursive", "--json")

    assert result.exit_code == 0
    assert [row["file"] for row in json.loads(result.stdout)] == ["photos/b.png", "photos/sub/a.JFIF"]
    assert "Duplicate paths, read once: 1." in result.stderr


def test_a_folder_without_images_is_a_usage_error(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(Server(), "empty")

    assert result.exit_code == 2
    assert "no .jfif, .jpe" in result.stderr


def test_files_that_are_no_pictures_are_listed_and_counted_and_set_the_exit_code(run, files, tmp_path):
    files[3].write_bytes(b"?")
    files[20].write_bytes(b"?")
    result = run(Server(), *files, "--csv", "out.csv")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"{files[3]}: Invalid image: It is damaged.\n" in result.stderr
    assert "38 pictures classified, 2 with an error\n" in result.stderr
    rows = csv_rows(tmp_path / "out.csv")
    assert [row["file"] for row in rows] == [str(path) for path in files]
    assert [row["label"] for row in rows if row["error"]] == ["", ""]


def test_a_csv_file_is_continued_after_a_failure(run, files, tmp_path):
    first = run(Server([path.read_bytes() for path in files[16:]]), *files, "--csv", "out.csv")
    assert first.exit_code == 1
    assert "error: Model failure: try again. Run the same command again to continue.\n" in first.stderr
    assert len(csv_rows(tmp_path / "out.csv")) == 16

    server = Server()
    second = run(server, *files, "--csv", "out.csv")
    assert second.exit_code == 0
    assert second.stderr.startswith("16 pictures have a row in out.csv and are skipped; 0 rows have an error.\n")
    assert server.n_images == 24
    assert [row["file"] for row in csv_rows(tmp_path / "out.csv")] == [str(path) for path in files]

    third = run(server, *files, "--csv", "out.csv")
    assert (third.exit_code, server.n_images) == (0, 24)
    assert "40 pictures have a row in out.csv and are skipped" in third.stderr


def test_errors_of_an_earlier_run_set_the_exit_code(run, files):
    files[3].write_bytes(b"?")
    run(Server(), *files, "--csv", "out.csv")
    result = run(Server(), *files, "--csv", "out.csv")

    assert result.exit_code == 1
    assert "40 pictures have a row in out.csv and are skipped; 1 rows have an error.\n" in result.stderr


def test_another_file_is_not_overwritten(run, files, tmp_path):
    (tmp_path / "notes.txt").write_text("my notes")
    server = Server()
    result = run(server, *files, "--csv", "notes.txt")

    assert result.exit_code == 1
    assert "Cannot continue notes.txt" in result.stderr
    assert server.requests == []


def test_csv_and_json_exclude_each_other(run, files):
    assert run(Server(), files[0], "--csv", "out.csv", "--json").exit_code == 2


def test_a_missing_csv_file_name_is_named_instead_of_the_option_behind_it(run, files):
    result = run(Server(), *files, "--csv")  # `run` adds --domain
    assert result.exit_code == 2
    assert "Invalid value for '--csv': The file name is missing before --domain." in " ".join(result.stderr.split())


def test_an_error_without_a_file_name_is_printed_as_it_is(capsys):
    with pytest.raises(typer.Exit), exit_on_error():
        raise OSError(errno.ENOSPC, "No space left on device")

    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_quiet_prints_results_and_errors_only(run, photos):
    assert run(Server(), "photos", "--json", "--quiet").stderr == ""
    failed = run(Server([b"PNG"], failure=NO_DOMAIN), "photos", "--quiet")
    assert failed.stderr == "error: No such domain: see /domains\n"


def test_text_from_outside_is_shown_as_it_is(tmp_path):
    labels = [Prediction(label, 0, 0.5) for label in ("[/x]", ":dog:", "a\x1b[2Jb")]
    results = [
        (tmp_path / "[bold]nope.png", Classification("paint", 1, "sha256:x", tuple(labels))),
        (tmp_path / "b.png", Classification("paint", error=NotFoundError("[/y]", "[bold] :cat:", code="x"))),
    ]
    console = Console(record=True, width=160)
    show(results, console)

    text = console.export_text()
    for shown in ("[bold]nope.png", "[/x] 50.0%", ":dog: 50.0%", "a?[2Jb", "[/y]", "[bold] :cat:"):
        assert shown in text


def test_pictures_of_a_table_are_named_by_their_path_below_the_common_folder(tmp_path):
    found = Classification("paint", 1, "sha256:x", (Prediction("red", 0, 0.5),))
    damaged = Classification("paint", error=NotFoundError("Invalid image", "It is damaged.", code="x"))
    of_one = [(tmp_path / "red" / "1.png", found), (tmp_path / "red" / "2.png", found)]
    of_two = [*of_one, *((tmp_path / "blue" / f"{n}.png", damaged) for n in range(1, 6))]
    console = Console(record=True, width=160)
    show(of_one, console)
    assert "│ 1.png " in console.export_text()

    show(of_two, console)

    text = console.export_text()
    assert "│ red/1.png " in text
    assert "blue/1.png, blue/2.png, blue/3.png and 2 more: It is damaged." in text


def shown(results, width):
    console = Console(record=True, width=width)
    show(results, console)
    return console.export_text()


def test_file_names_of_usual_length_fit_on_one_line_of_a_narrow_terminal(tmp_path):
    labels = (Prediction("speckled crescent", 0, 0.317), Prediction("faded crescent", 1, 0.313))
    found = Classification("satellite", 1, "sha256:x", labels)
    names = ["IMG_20260712_101112.jpg", "PXL_20260712_101112345.jpg"]
    lines = shown([(tmp_path / name, found) for name in names], 80).splitlines()

    assert [line.strip() for line in lines if "satellite" in line] == ["satellite, version 1"]
    assert all(sum(name in line and "speckled crescent 31.7%" in line for line in lines) == 1 for name in names)


def test_of_a_longer_name_every_character_is_shown(tmp_path):
    name = f"{'a_long_name_' * 12}{'x' * 40}.png"
    text = shown([(tmp_path / name, Classification("paint", 1, "sha256:x", (Prediction("red", 0, 0.5),)))], 80)

    assert name in "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))


def test_versions_that_differ_are_shown_in_a_column(tmp_path):
    results = [
        (tmp_path / f"{n}.png", Classification("paint", n, "sha256:x", (Prediction("red", 0, 0.5),))) for n in (1, 2)
    ]
    lines = shown(results, 80).splitlines()

    assert lines[0].strip() == "paint"
    assert "version" in lines[2]
    assert [line.split("│")[2].strip() for line in lines if line.startswith("│")] == ["1", "2"]


def test_a_table_of_errors_alone_has_no_version(tmp_path):
    problem = Classification(None, error=NotFoundError("Invalid image", "It is damaged.", code="x"))

    assert "version" not in shown([(tmp_path / "a.png", problem)], 80)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("http://127.0.0.1:9", "Start it with `caspl serve`, or pass another address as --url."),
        ("localhost:8000", "the address must start with http:// or https://"),
    ],
)
def test_an_address_without_a_server_gets_a_remedy(files, url, advice):
    result = CliRunner().invoke(
        classify_app, [str(files[0]), "--domain", "paint", "--url", url, "--retry-for", "0"], env={"COLUMNS": "200"}
    )

    assert result.exit_code == 1
    assert f"error: Cannot reach {url}" in result.stderr
    assert advice in result.stderr
