"""`caspl store` and `caspl bundle`: output and exit codes."""

import json

import pytest
from typer.testing import CliRunner

from prompt_store import digest_bytes
from prompt_store.cli import bundle_app, store_app
from prompt_store.manifest import Calibration
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key, trusted_key, write_keys
from tests.prompt_store.samples import manifest_fields, sample_bundle
from tests.stacks import random_bundle

BUNDLES = [sample_bundle(seed) for seed in range(3)]


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{index}.safetensors" for index in range(len(BUNDLES))]
    for path, data in zip(paths, BUNDLES, strict=True):
        path.write_bytes(data)
    return paths


@pytest.fixture
def run(tmp_path):
    def call(*arguments, code=0, app=store_app):
        result = CliRunner().invoke(
            app, [str(argument) for argument in arguments], env={"CASPL_STORE": str(tmp_path / "store")}
        )
        assert result.exit_code == code, result.output
        return result

    return call


def run_json(run, *arguments, **options):
    return json.loads(run(*arguments, "--json", **options).stdout)


def test_a_version_is_added_activated_and_rolled_back(run, files):
    assert run_json(run, "add", files[0], "--activate") == {
        "created": True,
        "digest": digest_bytes(BUNDLES[0]),
        "domain": "flowers",
        "is_activated": True,
        "is_signed": False,
        "version": 1,
    }
    assert "flowers version 2 added" in run("add", files[1], "--domain", "flowers").stdout
    assert run_json(run, "add", files[1])["created"] is False
    assert run_json(run, "activate", "flowers", 2, "--expect", 1)["version"] == 2
    assert [(row["version"], row["is_live"]) for row in run_json(run, "ls")] == [(1, False), (2, True)]
    assert run_json(run, "rollback", "flowers")["version"] == 1
    assert [entry["action"] for entry in run_json(run, "history", "flowers")][-2:] == ["activate", "rollback"]
    run("rm", "flowers", 2)
    assert run_json(run, "gc", "--grace-h", 0)["removed_blobs"] == [digest_bytes(BUNDLES[1])]


def test_tables_show_the_live_version_and_the_actor(run, files):
    run("add", files[0], "--activate")

    assert "*" in run("ls", "flowers").stdout
    assert "cli" in run("history", "flowers").stdout
    assert "would retire 0 versions" in run("gc", "--dry-run").stdout


def test_the_list_shows_the_signing_key_of_each_version_and_verifies_it_with_a_public_key(
    run, files, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    signature = tmp_path / "signature"
    signature.write_bytes(sign_bundle(digest_bytes(BUNDLES[0]), "0.safetensors", private_key()))
    run("add", files[0], "--signature", signature)
    run("add", files[1])
    hint = trusted_key().hint
    own, other = write_keys(tmp_path)[1], write_keys(tmp_path, 1)[1]
    assert f"{hint[:16]} (not verified)" in run("ls").stdout
    assert "key0" in run("ls", "--public-key", own).stdout
    first, second = run_json(run, "ls")
    assert [(one["key"], one["is_verified"]) for one in first["signatures"]] == [(hint, False)]
    assert second["signatures"] == []
    first, _ = run_json(run, "ls", "--public-key", other, "--public-key", own)
    assert [(one["name"], one["is_verified"], one["problem"]) for one in first["signatures"]] == [("key0", True, "")]
    first, _ = run_json(run, "ls", "--public-key", other)
    assert first["signatures"][0]["problem"].startswith("The signature is by another key.")
    assert "key_invalid" in run("ls", "--public-key", files[0], code=1).stderr


def test_failures_exit_with_1_and_print_their_code(run, files):
    run("add", files[0], "--activate")
    run("add", files[1])

    assert "version_exists" in run("add", files[0], code=1).stderr
    assert "conflict" in run("activate", "flowers", 2, "--expect", 2, code=1).stderr
    assert "version_live" in run("rm", "flowers", 1, code=1).stderr
    assert "domain_not_found" in run("ls", "weeds", code=1).stderr
    assert json.loads(run("rollback", "flowers", "--json", code=1).stderr)["error"]["code"] == "nothing_to_roll_back"


def test_a_damaged_domain_is_named_and_the_others_are_listed(run, files, tmp_path):
    files[1].write_bytes(sample_bundle(0, "weeds"))
    for file in files[:2]:
        run("add", file)
    (tmp_path / "store" / "domains" / "flowers" / "log" / "0000000001.json").rename(tmp_path / "away")
    (tmp_path / "store" / "domains" / "flowers" / "log" / "0000000002.json").write_bytes(b"")
    listed = run("ls", "--json", code=1)

    assert [row["domain"] for row in json.loads(listed.stdout)] == ["weeds"]
    assert json.loads(listed.stderr)["error"]["detail"].startswith("flowers: Commit record 1 is missing")
    assert "domain flowers" in run("gc", code=1).stderr


def test_listing_does_not_create_a_store(run, tmp_path):
    assert "not_a_store" in run("ls", code=1).stderr
    assert not (tmp_path / "store").exists()


def test_a_usage_error_exits_with_2(run, tmp_path):
    run("activate", "flowers", "two", code=2)
    run("activate", "flowers", 0, code=2)
    run("add", tmp_path / "missing", code=2)
    run("nonsense", code=2)


def test_an_invalid_bundle_exits_with_3_and_makes_no_store(run, files, tmp_path):
    files[0].write_bytes(BUNDLES[0][:-1])

    assert "st_trailing" in run("add", files[0], code=3).stderr
    assert "st_trailing" in run("inspect", files[0], app=bundle_app, code=3).stderr
    assert "manifest_mismatch" in run("add", files[1], "--domain", "weeds", code=3).stderr
    assert json.loads(run("add", files[0], "--json", code=3).stderr)["error"]["code"] == "st_trailing"


def test_inspect_shows_manifest_and_tensors(run, files):
    facts = run_json(run, "inspect", files[0], app=bundle_app)

    assert facts["digest"] == digest_bytes(BUNDLES[0])
    assert facts["manifest"]["domain"] == "flowers"
    assert facts["tensors"]["image.boost"] == {"dtype": "float32", "shape": [2, 3, 4]}
    assert "image.boost" in run("inspect", files[0], app=bundle_app).stdout


def test_inspect_shows_foreign_text_without_markup_or_control_sequences(run, tmp_path):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(sample_bundle(future="[bold]x[/bold]\x1b]0;title\x07"))
    shown = run("inspect", path, app=bundle_app).stdout

    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown


def test_verify_reports_every_file(run, files):
    files[1].write_bytes(b"no bundle at all")
    verdicts = run_json(run, "verify", *files, app=bundle_app, code=3)

    assert [verdict["is_valid"] for verdict in verdicts] == [True, False, True]
    assert verdicts[1]["code"] == "st_header_length"
    assert "ok, flowers" in run("verify", files[0], "--digest", digest_bytes(BUNDLES[0]), app=bundle_app).stdout
    assert "digest_mismatch" in run("verify", files[2], "--digest", "sha256:" + "0" * 64, app=bundle_app, code=3).stdout
    assert "digest_invalid" in run("verify", files[2], "--digest", "x", app=bundle_app, code=3).stdout


def test_diff_names_changed_fields_and_tensors(run, files, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(sample_bundle(1, logit_scale=50.0))
    changes = run_json(run, "diff", files[0], other, app=bundle_app)

    assert changes["is_equal"] is False
    assert changes["fields"] == [{"field": "logit_scale", "first": 100.0, "second": 50.0}]
    assert [change["name"] for change in changes["tensors"]] == ["image.boost", "text.features"]
    assert "logit_scale" in run("diff", files[0], other, app=bundle_app).stdout
    assert "no difference" in run("diff", files[0], files[0], app=bundle_app).stdout


def options(command):
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")} - {"--help"}


def test_the_cli_options_are_frozen():
    from typer.main import get_command

    frozen = {
        "store": {
            "ls": {"--public-key", "--store", "--json"},
            "add": {"--domain", "--activate", "--signature", "--store", "--json"},
            "add-signature": {"--store", "--json"},
            "audit": {"--verify", "--expect", "--limit", "--store", "--json"},
            "activate": {"--expect", "--store", "--json"},
            "rollback": {"--store", "--json"},
            "history": {"--limit", "--before", "--store", "--json"},
            "gc": {"--keep", "--grace-h", "--dry-run", "--store", "--json"},
            "rm": {"--store", "--json"},
            "check": {"--repair", "--store", "--json"},
        },
        "bundle": {
            "inspect": {"--json"},
            "verify": {"--digest", "--json"},
            "diff": {"--json"},
            "sign": {"--key", "--output", "--json"},
            "verify-signature": {"--public-key", "--signature", "--json"},
            "bom": {"--output"},
        },
    }
    for name, app in (("store", store_app), ("bundle", bundle_app)):
        found = {command: options(parsed) for command, parsed in get_command(app).commands.items()}
        assert found == frozen[name]


def test_the_sample_bundles_are_valid():
    assert manifest_fields()["domain"] == "flowers"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"head": "plain"}, ["static", "any"]),
        ({"head": "class"}, ["linear head with weight 0.7 on embeddings"]),
        (
            {"head": "class", "head_input": "unit", "calibration": Calibration(temperature=2.5)},
            ["on unit features", "temperature", "2.5"],
        ),
        ({"head": "projector", "labels": "own"}, ["image projector", "its own classes only"]),
        ({"head": "conditional", "text_adapt": (1, 2)}, ["computed per image"]),
    ],
)
def test_inspect_shows_the_head_and_the_accepted_labels(tmp_path, changes, says):
    path = tmp_path / "b.safetensors"
    path.write_bytes(random_bundle(**changes))
    result = CliRunner().invoke(bundle_app, ["inspect", str(path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(words in result.output for words in says)
