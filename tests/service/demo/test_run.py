import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from caspl.classify_command import classify_app
from prompt_store.bundle import read_bundle
from prompt_store.store import Store
from service.cli import keys_app, serve_app
from service.demo.files import ASSETS, read_bundles, seed_store
from service.errors import SettingsError
from tests.prompt_store.faults import CountingDisk, CrashingDisk, ProcessCrash
from tests.service.fakes import colour_bundle, picture


def said(result):
    """What a command printed, in one line."""
    return " ".join(result.output.split())


def test_the_answer_in_the_readme_is_from_the_packaged_bundle():
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    answer = json.loads(re.search(r"```json\n(.*?)```", readme, re.DOTALL)[1])
    bundle = read_bundle((ASSETS / "bundles" / f"{answer['domain']}.safetensors").read_bytes())
    path = re.search(r"@(service/demo/images/\S+)", readme)[1]
    image = Path(__file__).parents[3] / path
    found = answer["results"][0]["predictions"]
    assert (answer["digest"], image.parent.name) == (bundle.digest, answer["domain"])
    assert [one["label"] for one in found] == [bundle.manifest.classes[one["class_id"]].name for one in found]
    assert image.stem.startswith(found[0]["label"].replace(" ", "-"))


def test_missing_demo_files_are_reported_by_their_folder(tmp_path):
    with pytest.raises(SettingsError, match=str(tmp_path / "bundles")):
        read_bundles(tmp_path / "bundles")
    (tmp_path / "x.safetensors").write_bytes(b"no bundle")
    with pytest.raises(SettingsError, match="is not a valid bundle"):
        read_bundles(tmp_path)


def test_seeding_a_store_twice_changes_nothing(tmp_path):
    for number in (1, 2):
        (tmp_path / f"paint-{number}.safetensors").write_bytes(colour_bundle(seed=number))
    store = Store.open(tmp_path / "store")
    seed_store(store, tmp_path)
    history = store.history("paint")
    seed_store(store, tmp_path)
    assert store.live("paint").version == 2
    assert store.history("paint") == history


def test_a_seeding_that_was_interrupted_anywhere_is_finished_by_the_next_start(tmp_path):
    for number in (1, 2):
        (tmp_path / f"paint-{number}.safetensors").write_bytes(colour_bundle(seed=number))
    disk = CountingDisk()
    seed_store(Store.open(tmp_path / "whole", disk=disk), tmp_path)
    for step in range(0, disk.n_calls, 3):
        root = tmp_path / f"store{step}"
        with pytest.raises(ProcessCrash):
            seed_store(Store.open(root, disk=CrashingDisk(step)), tmp_path)
        store = Store.open(root)
        seed_store(store, tmp_path)
        assert store.live("paint").version == 2
        assert [one.action for one in store.history("paint")].count("activate") == 2


def test_seeding_leaves_the_operators_choice_alone(tmp_path):
    (tmp_path / "paint.safetensors").write_bytes(colour_bundle(seed=1))
    store = Store.open(tmp_path / "store")
    seed_store(store, tmp_path)
    store.activate("paint", store.add("paint", colour_bundle(seed=2)).version)
    before = store.history("paint")
    seed_store(store, tmp_path)
    assert store.history("paint") == before


def test_a_damaged_domain_does_not_keep_the_demo_from_starting(tmp_path, caplog):
    (tmp_path / "paint.safetensors").write_bytes(colour_bundle())
    (tmp_path / "zebra.safetensors").write_bytes(colour_bundle("zebra"))
    seed_store(Store.open(tmp_path / "store"), tmp_path)
    (tmp_path / "store" / "domains" / "paint" / "log" / "0000000001.json").unlink()
    (tmp_path / "zebra.safetensors").write_bytes(colour_bundle("zebra", seed=1))
    store = Store.open(tmp_path / "store")
    seed_store(store, tmp_path)
    assert store.live("zebra").version == 2
    assert [(one.getMessage(), one.domain, one.code) for one in caplog.records] == [
        ("demo.not_seeded", "paint", "store_corrupt")
    ]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`caspl serve` on `tmp_path/store` up to the model, and the stores that would have been served."""
    served = []
    monkeypatch.setattr("service.cli.logs.install", lambda *_: None)
    monkeypatch.setattr("service.server.run", lambda _, store, *__: served.append(store) or 0)
    monkeypatch.setattr("service.cli.end_process", sys.exit)

    def run(*options):
        return CliRunner().invoke(serve_app, ["--store", str(tmp_path / "store"), *options]), served

    return run


@pytest.mark.parametrize("options", [[], ["--demo"]], ids=["serve", "serve --demo"])
@pytest.mark.parametrize("damage", ["record", "link"])
def test_the_service_starts_on_a_store_with_a_damaged_domain(tmp_path, start, options, damage):
    seed_store(Store.open(tmp_path / "store"), ASSETS / "bundles")
    log = tmp_path / "store" / "domains" / "night" / "log"
    if damage == "record":
        (log / "0000000001.json").unlink()
    else:
        log.symlink_to(log.rename(tmp_path / "away"))
    result, served = start(*options)
    assert result.exit_code == 0, result.output
    (store,) = served
    assert "night" in store.domains()
    assert store.live("thermal").version == 1


def test_a_store_whose_domains_cannot_be_listed_ends_the_start_with_one_line(tmp_path, start):
    Store.open(tmp_path / "store")
    domains = tmp_path / "store" / "domains"
    domains.symlink_to(domains.rename(tmp_path / "away"))
    result, served = start()
    assert (result.exit_code, served) == (1, [])
    assert "symbolic link" in said(result)


@pytest.mark.parametrize(
    ("options", "is_kept"), [(["--demo"], False), (["--demo", "--store", "kept"], True), (["--store", "kept"], True)]
)
def test_the_banner_reports_whether_the_store_is_removed_at_the_end(tmp_path, monkeypatch, options, is_kept):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("service.cli.logs.install", lambda *_: None)
    monkeypatch.setattr("service.cli.end_process", sys.exit)
    served = []

    def run(settings, store, announce):
        served.append(store.root)
        backbone = SimpleNamespace(arch="demo-student", pretrained="demo", fingerprint="sha256:0", device="cpu")
        engine = SimpleNamespace(backbone=backbone, backend="torch", dtype="float32")
        table, keys = SimpleNamespace(states={}), SimpleNamespace(is_open=True)
        announce(SimpleNamespace(engine=engine, settings=settings, store=store, table=table, keys=keys), "http://test")
        return 0

    monkeypatch.setattr("service.server.run", run)
    result = CliRunner().invoke(serve_app, [*options, "--follow", "hf://acme/paint"])
    assert result.exit_code == 0, result.output
    assert f"store {served[0]}" in said(result)
    assert "follows hf://acme/paint" in said(result)
    assert "open http://test (page)" in said(result)
    assert ("removed when the service stops; --store FOLDER keeps one" in said(result)) is not is_kept
    assert served[0].exists() is is_kept


def test_serving_the_demo_without_its_files_says_which_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("service.cli.logs.install", lambda *_: None)
    result = CliRunner().invoke(serve_app, ["--demo", "--demo-assets", str(tmp_path)])
    assert result.exit_code == 2
    assert "No demo bundles" in said(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "API keys are required"),  # noqa: S104
        (["--dtype", "int4"], "Invalid settings"),
        (["--backbone", "ViT-B-99", "--port", "0"], "Unknown backbone"),
        pytest.param(["--port", "0"], "needs weights", marks=pytest.mark.slow),
        pytest.param(["--port", "0", "--pretrained", "opnai"], "Did you mean openai", marks=pytest.mark.slow),
        pytest.param(["--port", "0", "--pretrained", "nowhere.pt"], "No weights file at", marks=pytest.mark.slow),
        (["--port", "0", "--backbone", "local-dir:nowhere"], "local-dir:nowhere needs open_clip_config.json"),
        (["--port", "0", "--keys-file", "missing.json"], "Cannot read"),
        (["--port", "0", "--keys-file", "[/nope].json"], "[/nope].json"),
    ],
)
def test_a_start_that_cannot_work_ends_with_one_clear_line(tmp_path, monkeypatch, options, words):
    monkeypatch.setattr("service.cli.logs.install", lambda *_: None)
    result = CliRunner().invoke(serve_app, ["--store", str(tmp_path / "store"), *options])
    assert result.exit_code == 2
    assert words in said(result)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("options", "is_asked"), [([], False), (["--quick-gelu"], True)])
def test_quick_gelu_is_an_option_of_the_start(tmp_path, monkeypatch, options, is_asked):
    seen = []
    monkeypatch.setattr("service.cli.logs.install", lambda *_: None)
    monkeypatch.setattr("service.server.run", lambda settings, *_: seen.append(settings.quick_gelu) or 0)
    monkeypatch.setattr("service.cli.end_process", sys.exit)
    result = CliRunner().invoke(serve_app, ["--store", str(tmp_path / "store"), *options])
    assert result.exit_code == 0, result.output
    assert seen == [is_asked]


def test_an_unknown_variable_stops_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("CASPL_PROT", "80")
    result = CliRunner().invoke(serve_app, ["--store", str(tmp_path)])
    assert result.exit_code == 2
    assert "CASPL_PROT" in said(result)


def test_a_new_key_is_shown_once(tmp_path):
    path = tmp_path / "keys.json"
    result = CliRunner().invoke(keys_app, ["new", str(path), "--scope", "classify", "--domain", "paint"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("pk_")
    assert result.output.strip() not in path.read_text()
    assert CliRunner().invoke(keys_app, ["new", str(path), "--scope", "root"]).exit_code == 2


def test_the_client_says_when_nobody_answers(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(picture())
    result = CliRunner().invoke(classify_app, [str(image), "--domain", "paint", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "Cannot reach" in said(result)


def test_the_packaged_demo_is_looked_for_inside_the_package():
    assert ASSETS.parts[-2:] == ("service", "demo")
