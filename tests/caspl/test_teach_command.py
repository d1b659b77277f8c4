"""`caspl teach` with a server in memory; `test_teaching_a_server.py` has a real one."""

import hashlib
import json
from dataclasses import asdict

import httpx
import pytest
from typer.testing import CliRunner

import caspl
from caspl import teach_command
from caspl.teach_command import teach_app
from prompted_clip.fit_report import ClassFit, FitReport, Rate
from tests.training.data.tiny_images import draw_all

PROBLEM = {"title": "Unsupported image format", "code": "image_format", "detail": "not a JPEG", "status": 415}


class Server:
    """A server in memory: its domains, its examples by picture, and the bodies of its fits."""

    def __init__(self, *domains):
        self.domains, self.created, self.examples, self.fits = list(domains), [], {}, []
        self.fit_error = None
        self.method = "gda"

    def __call__(self, request):
        path = request.url.path
        if path == "/info":
            return httpx.Response(
                200, json={"limits": {"max_images": 99, "max_request_bytes": 2**25, "max_timeout_s": 30.0}}
            )
        if path == "/domains":
            rows = [
                {"domain": name, "state": "live", "version": 1, "digest": "d", "n_classes": 2} for name in self.domains
            ]
            return httpx.Response(200, json={"domains": rows})
        if request.method == "PUT":
            self.created.append(json.loads(request.content))
            return httpx.Response(201, json={"domain": "pets", "version": 1, "digest": "sha256:a"})
        if path == "/domains/pets/examples":
            return self.add(request.content)
        assert path == "/domains/pets/fit"
        self.fits.append(json.loads(request.content))
        if self.fit_error:
            return httpx.Response(409, json=self.fit_error)
        is_live = self.fits[-1]["activate"]
        body = {
            "new_classes": ["dog"],
            "domain": "pets",
            "version": 2,
            "digest": "sha256:b",
            "is_live": is_live,
            "report": self.report(),
        }
        return httpx.Response(201, json=body)

    def add(self, content):
        boundary = content.split(b"\r\n", 1)[0]
        rows = []
        for index, part in enumerate(content.split(boundary)[1:-1]):
            head, _, data = part.partition(b"\r\n\r\n")
            field = head.split(b'name="')[1].split(b'"')[0].decode()
            rows.append(
                {"index": index, "prediction": None} | self.keep(None if field == "unlabelled" else field, data)
            )
        if all(row.get("error") for row in rows):
            return httpx.Response(422, json={"code": "images_rejected", "errors": [PROBLEM] * len(rows)})
        return httpx.Response(201, json={"examples": rows})

    def keep(self, label, data):
        if b"PNG" not in data:
            return {"error": PROBLEM}
        number, known = self.examples.setdefault(hashlib.sha256(data).digest(), [len(self.examples) + 1, "?"])
        status = "added" if known == "?" else "exists" if label in {known, None} else "relabelled"
        self.examples[hashlib.sha256(data).digest()][1] = label if status != "exists" else known
        return {"id": number, "status": status, "label": label, "error": None}

    def report(self):
        rate = Rate(0.75, 0.6, 0.85)
        classes = (ClassFit("cat", 4, True, rate, 0.5, 0.7, "dog"),)
        report = FitReport(self.method, 1.0, 2.0, 4, 0, rate, 0.5, 0.7, classes, ((4,),), (), 0.2, 0.1, {"0.05": 0.3})
        suspect = {"label": "cat", "predicted": "dog", "probability": 0.1}
        suspects = [suspect | {"id": 1, "name": "a.png"}, suspect | {"id": 98, "name": "x.jpg"}, suspect | {"id": 99}]
        return asdict(report) | {"suspects": suspects}


@pytest.fixture
def pets(tmp_path):
    return draw_all(tmp_path / "pets", "cat/a.png", "cat/b.png", "dog/c.png", "unlabelled/d.png", "e.png")


@pytest.fixture
def teach(monkeypatch, pets):
    def run(server, *options, folder=pets):
        def client(url, **settings):
            return caspl.Client(url, transport=httpx.MockTransport(server), **settings)

        monkeypatch.setattr(teach_command, "Client", client)
        return CliRunner().invoke(
            teach_app, [str(folder), "--domain", "pets", *options], env={"COLUMNS": "200"}, catch_exceptions=False
        )

    return run


def test_a_missing_domain_is_created_from_the_folders_taught_and_live(teach, pets):
    server = Server("other")
    result = teach(server)

    assert result.exit_code == 0, result.output
    assert server.created == [{"classes": ["cat", "dog"], "templates": [], "boosted_by": None}]
    assert sorted(label or "-" for _, label in server.examples.values()) == ["-", "-", "cat", "cat", "dog"]
    assert server.fits == [
        {"activate": True, "based_on": "live", "classes": "own", "method": "auto", "unlabelled": False}
    ]
    assert "Creating the domain pets with 2 classes: cat, dog" in result.stderr
    assert "Pictures: 5 added, 0 present, 0 relabelled, 0 rejected." in result.stderr
    assert "75.0% (60.0% to 85.0%)" in result.stdout
    assert "2 (live)" in result.stdout
    assert f"{pets}/cat/a.png: cat, predicted dog" in result.stdout
    assert "example 98 (x.jpg): cat, predicted dog" in result.stdout
    assert "example 99: cat, predicted dog" in result.stdout
    assert "Try it: caspl classify PICTURE --domain pets" in result.stderr


def test_running_again_adds_new_pictures_only_and_a_moved_one_gets_its_new_label(teach, pets):
    server = Server("pets")
    teach(server)
    (pets / "cat" / "b.png").rename(pets / "dog" / "b.png")
    draw_all(pets, "dog/new.png")
    result = teach(server)

    assert result.exit_code == 0
    assert server.created == []
    assert "New classes of the domain: dog" in result.stderr
    assert "Pictures: 1 added, 4 present, 1 relabelled, 0 rejected." in result.stderr


def test_the_result_is_one_json_object(teach, pets):
    (pets / "dog" / "broken.png").write_bytes(b"?")
    result = json.loads(teach(Server(), "--json").stdout)

    assert (result["domain"], result["is_new_domain"]) == ("pets", True)
    assert (result["version"], result["digest"], result["is_live"]) == (2, "sha256:b", True)
    assert result["pictures"] == {"added": 5, "exists": 0, "relabelled": 0}
    rejected = {name: PROBLEM[name] for name in ("title", "code", "detail")}
    assert result["rejected"] == [{"file": f"{pets}/dog/broken.png"} | rejected]
    files = [f"{pets}/cat/a.png", "example 98 (x.jpg)", "example 99"]
    assert [one["file"] for one in result["report"]["suspects"]] == files
    assert result["report"]["accuracy"]["rate"] == 0.75


def test_options_reach_the_server(teach, tmp_path):
    (tmp_path / "names.txt").write_text("dog\ncat\nbird\n")
    server = Server()
    options = ["--classes", str(tmp_path / "names.txt"), "--boosted-by", "other", "--method", "gda", "--no-activate"]
    options += ["--use-unlabelled"]
    result = teach(server, *options, "--url", "http://elsewhere")

    assert server.created[0]["classes"] == ["dog", "cat", "bird"]
    assert server.created[0]["boosted_by"] == "other"
    options = {"based_on": "live", "classes": "own", "method": "gda", "unlabelled": True}
    assert server.fits == [{"activate": False, **options}]
    assert "2 (not live)" in result.stdout
    assert "Try it: caspl classify PICTURE --domain pets --version 2 --url http://elsewhere" in result.stderr


def test_the_api_key_is_sent(teach):
    keys = []

    class Guarded(Server):
        def __call__(self, request):
            keys.append(request.headers.get("authorization"))
            return super().__call__(request)

    assert teach(Guarded(), "--key", "pk_x").exit_code == 0
    assert set(keys) == {"Bearer pk_x"}


def test_a_domain_that_may_not_be_created_is_named_before_the_error(teach):
    class Forbidding(Server):
        def __call__(self, request):
            denied = {"title": "Permission denied", "code": "denied", "detail": "no scope"}
            return httpx.Response(403, json=denied) if request.method == "PUT" else super().__call__(request)

    lines = teach(Forbidding()).stderr.splitlines()
    expected = ["Creating the domain pets with 2 classes: cat, dog", "error: Permission denied: no scope"]
    assert lines == expected


def test_an_invalid_domain_name_is_refused_before_anything_is_created(teach):
    server = Server()
    result = teach(server, "--domain", "Our Pets")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: Not a valid domain name: use lower-case letters")
    assert "for example our-pets" in result.stderr
    assert not server.created


def test_options_of_a_new_domain_are_named_when_the_domain_exists(teach):
    assert "The domain pets exists: --boosted-by is not used." in teach(Server("pets"), "--boosted-by", "x").stderr


@pytest.mark.parametrize("option", ["--activate", "--json"])
def test_a_rejected_picture_is_named_and_sets_the_exit_code_and_the_others_go_live(teach, pets, option):
    (pets / "dog" / "broken[red].png").write_bytes(b"?")
    server = Server()
    result = teach(server, option)

    assert result.exit_code == 1
    assert server.fits[0]["activate"]
    assert "2 (live)" in result.stdout or json.loads(result.stdout)["is_live"]
    assert "5 added, 0 present, 0 relabelled, 1 rejected." in result.stderr
    assert f"{pets}/dog/broken[red].png: Unsupported image format: not a JPEG" in result.stderr


def test_rejected_pictures_alone_are_an_error_and_nothing_is_fitted(teach, tmp_path):
    folder = tmp_path / "broken"
    for number in range(25):
        path = folder / "cat" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    server = Server("pets")
    result = teach(server, folder=folder)

    assert result.exit_code == 1
    assert "and 5 more, listed by --json" in result.stderr
    assert result.stderr.endswith("error: All pictures were rejected\n")
    assert server.fits == []


def test_the_same_picture_in_two_classes_is_an_error_before_anything_is_sent(teach, pets):
    (pets / "dog" / "copy.png").write_bytes((pets / "cat" / "a.png").read_bytes())
    server = Server()
    result = teach(server)

    assert result.exit_code == 1
    assert f"the same picture in two: {pets}/cat/a.png and {pets}/dog/copy.png. Keep one of the two." in result.stderr
    assert (server.created, server.examples, server.fits) == ([], {}, [])


def test_files_that_are_not_sent_are_counted(teach, pets):
    (pets / "cat" / "notes.gif").write_bytes(b"GIF")

    assert "1 file not read: 1 .gif" in teach(Server()).stderr


def test_pictures_without_labels_make_no_version(teach, tmp_path):
    server = Server("pets")
    result = teach(server, "--json", folder=draw_all(tmp_path / "flat", "a.png"))

    assert result.exit_code == 0
    assert "has no labelled pictures: no version was made." in result.stderr
    assert server.fits == []
    answer = json.loads(result.stdout)
    assert (answer["pictures"]["added"], answer["version"], answer["report"]) == (1, None, None)


@pytest.mark.parametrize(("name", "n_classes"), [("a.png", 0), ("cat/a.png", 1)])
def test_a_new_domain_needs_two_classes(teach, tmp_path, name, n_classes):
    server = Server()
    result = teach(server, folder=draw_all(tmp_path / "few", name))

    assert result.exit_code == 1
    line = f"The domain pets does not exist: a new one needs at least 2 classes, the folder has {n_classes}. Make"
    assert line in result.stderr
    assert (server.created, server.examples) == ([], {})


def test_text_features_that_no_head_beats_are_reported_as_that(teach):
    server = Server()
    server.method = "text"

    assert "No head was better than the text features" in teach(server).stderr


def test_a_failing_fit_is_one_line_after_the_upload(teach):
    server = Server()
    server.fit_error = {"title": "Too few examples", "detail": "add some", "code": "x"}
    result = teach(server)

    assert result.exit_code == 1
    assert "5 added" in result.stderr
    assert result.stderr.endswith("error: Too few examples: add some\n")


@pytest.mark.parametrize(
    ("folder", "status", "message"), [("gone", 1, "No such folder: gone."), ("", 1, "found no pictures")]
)
def test_a_folder_without_pictures_is_an_error_before_anything_is_sent(teach, tmp_path, folder, status, message):
    def refuse(request):
        raise AssertionError(request.url)

    (tmp_path / "empty").mkdir()
    result = teach(refuse, folder=folder or tmp_path / "empty")

    assert result.exit_code == status
    assert message in result.stderr


def test_an_unknown_method_is_a_usage_error(teach):
    assert teach(Server(), "--method", "magic").exit_code == 2
