"""`caspl push` and `caspl pull`: output, files, stores and exit codes."""

import json

import pytest
from typer.testing import CliRunner

from prompt_store import Store, digest_bytes
from prompt_store.remotes.commands import pull_app, push_app
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key, write_keys
from tests.prompt_store.remotes.registries import OneArtifact, Uploads
from tests.prompt_store.remotes.web import serving_web
from tests.prompt_store.samples import sample_bundle

DATA, OTHER = sample_bundle(), sample_bundle(1)
SIGNATURES = [sign_bundle(digest_bytes(DATA), "flowers.safetensors", private_key(number)) for number in range(2)]


@pytest.fixture
def answers():
    return OneArtifact(DATA, SIGNATURES)


@pytest.fixture
def web(answers):
    with serving_web(answers) as web:
        yield web


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(app, *arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result

    return call


def address(web):
    return f"oci://{web.host}/caspl/flowers:1"


def error_of(result):
    return json.loads(result.stderr)["error"]["code"]


def test_a_pull_writes_the_bundle_with_its_signatures_and_bill_of_materials(run, web, tmp_path, answers):
    result = run(pull_app, address(web))
    assert f"flowers.safetensors ({digest_bytes(DATA)}), 2 signatures" in result.stdout
    assert (tmp_path / "flowers.safetensors").read_bytes() == DATA
    assert (tmp_path / "flowers.safetensors.sig").read_bytes() == SIGNATURES[0]
    assert (tmp_path / "flowers.safetensors.2.sig").read_bytes() == SIGNATURES[1]
    assert (tmp_path / "flowers.cdx.json").read_bytes() == answers.artifact.bom
    assert not list(tmp_path.glob(".*"))
    run(pull_app, address(web))  # the same content again


def test_a_pull_replaces_no_file_with_other_content(run, web, tmp_path):
    (tmp_path / "new.safetensors").write_bytes(OTHER)
    result = run(pull_app, address(web), "--output", "new.safetensors", "--json", code=1)
    assert error_of(result) == "file_exists"
    assert [path.name for path in tmp_path.glob("new*")] == ["new.safetensors"]
    assert (tmp_path / "new.safetensors").read_bytes() == OTHER


def test_a_pull_into_a_store_publishes_a_version_with_its_signatures(run, web, tmp_path):
    facts = json.loads(run(pull_app, address(web), "--store", "store", "--activate", "--json").stdout)
    store = Store.open(tmp_path / "store")
    assert (facts["domain"], facts["version"], facts["is_new"], facts["is_activated"]) == ("flowers", 1, True, True)
    assert store.live("flowers").digest == digest_bytes(DATA)
    assert sorted(store.signatures(digest_bytes(DATA))) == sorted(SIGNATURES)
    assert not (tmp_path / "flowers.safetensors").exists()
    again = json.loads(run(pull_app, address(web), "--store", "store", "--json").stdout)
    assert (again["version"], again["is_new"]) == (1, False)


def test_content_of_an_older_version_is_that_version_again(run, web, tmp_path):
    store = Store.open(tmp_path / "store")
    for data in (DATA, OTHER):
        store.activate("flowers", store.add("flowers", data).version)
    facts = json.loads(run(pull_app, address(web), "--store", "store", "--activate", "--json").stdout)
    assert (facts["version"], facts["is_new"], store.live("flowers").version) == (1, False, 1)
    assert len(store.signatures(digest_bytes(DATA))) == 2


@pytest.mark.parametrize(
    ("options", "exit_code", "code"),
    [
        (["--domain", "weeds"], 3, "manifest_mismatch"),
        (["--digest", "sha256:" + "0" * 64], 3, "digest_mismatch"),
        (["--digest", "1234"], 3, "digest_invalid"),
        (["--require-signature", "key5.pub"], 1, "signature_invalid"),
    ],
)
def test_a_bundle_that_is_not_the_expected_one_is_refused(run, web, tmp_path, options, exit_code, code):
    write_keys(tmp_path, 5)
    for target in ([], ["--store", "store"]):
        result = run(pull_app, address(web), *options, *target, "--json", code=exit_code)
        assert error_of(result) == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docker", "key5.pem", "key5.pub"]


def test_a_required_signature_by_one_of_the_keys_is_enough(run, web, tmp_path):
    _, public = write_keys(tmp_path, 1)
    run(pull_app, address(web), "--require-signature", public)


def test_an_unsigned_bundle_is_refused_where_a_signature_is_required(run, tmp_path):
    _, public = write_keys(tmp_path)
    with serving_web(OneArtifact(DATA)) as web:
        result = run(pull_app, address(web), "--require-signature", public, "--json", code=1)
    assert error_of(result) == "signature_required"


def test_a_signature_of_another_bundle_is_refused_even_if_none_is_required(run, answers):
    other = OneArtifact(OTHER, [sign_bundle(digest_bytes(OTHER), "x", private_key())])
    _, signature, _ = json.loads(other.manifest)["layers"]
    answers.rewrite(lambda fields: fields["layers"].append(signature))
    answers.blobs |= other.blobs
    with serving_web(answers) as web:
        assert error_of(run(pull_app, address(web), "--json", code=1)) == "signature_invalid"


def test_a_valid_artifact_of_an_invalid_bundle_is_refused(run, answers):
    broken = DATA[:100]
    layer = {"digest": digest_bytes(broken), "size": len(broken)}
    answers.rewrite(lambda fields: (fields["layers"][0].update(layer), fields.update(layers=fields["layers"][:1])))
    answers.blobs[digest_bytes(broken)] = broken
    with serving_web(answers) as web:
        assert error_of(run(pull_app, address(web), "--json", code=3)) == "st_header_length"


def test_further_files_of_the_artifact_are_named(run, answers):
    def add_licence(fields):
        fields["layers"].append(fields["layers"][-1] | {"annotations": {"org.cncf.model.filepath": "LICENSE\x1b[2J"}})

    answers.rewrite(add_licence)
    with serving_web(answers) as web:
        assert "not pulled: LICENSE?[2J" in run(pull_app, address(web)).stdout


def test_a_pulled_file_is_pushed_with_all_its_signatures(run, web, tmp_path, answers):
    run(pull_app, address(web))
    uploads = Uploads()
    with serving_web(uploads) as other:
        run(push_app, "flowers.safetensors", address(other))
    assert uploads.stored["1"] == answers.manifest


def test_a_file_is_pushed_with_the_signature_beside_it(run, tmp_path):
    (tmp_path / "my.safetensors").write_bytes(DATA)
    (tmp_path / "my.safetensors.sig").write_bytes(SIGNATURES[1])
    uploads = Uploads()
    with serving_web(uploads) as web:
        facts = json.loads(run(push_app, "my.safetensors", address(web), "--json").stdout)
    assert {digest_bytes(DATA), digest_bytes(SIGNATURES[1]), "1"} <= uploads.stored.keys()
    assert (facts["domain"], facts["digest"], facts["n_signatures"]) == ("flowers", digest_bytes(DATA), 1)
    assert facts["address"] == f"{address(web)}@{digest_bytes(uploads.stored['1'])}"


def test_a_domain_is_pushed_from_the_store_with_all_signatures_of_its_live_version(run, tmp_path):
    store = Store.open(tmp_path / "store")
    store.add("flowers", DATA, signature=SIGNATURES[0])
    store.add_signature("flowers", 1, SIGNATURES[1])
    store.activate("flowers", 1)
    store.add("flowers", OTHER)
    uploads = Uploads()
    with serving_web(uploads) as web:
        live = json.loads(run(push_app, "flowers", address(web), "--store", "store", "--json").stdout)
        second = run(push_app, "flowers", address(web), "--version", 2, "--store", "store")
    assert (live["digest"], live["n_signatures"]) == (digest_bytes(DATA), 2)
    assert f"({digest_bytes(OTHER)}), not signed" in second.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["none.safetensors", "oci://localhost:1/a"], 1, "There is no file none.safetensors"),
        (["Not A Domain", "oci://localhost:1/a", "--store", "store"], 3, "name_invalid"),
        (["idle", "oci://localhost:1/a", "--store", "store"], 1, "domain_not_live"),
        (["weeds", "oci://localhost:1/a", "--store", "store"], 1, "domain_not_found"),
        (["weeds", "oci://localhost:1/a", "--store", "nowhere"], 1, "not_a_store"),
        (["broken.safetensors", "oci://localhost:1/a"], 3, "st_header_length"),
        (["good.safetensors", "s4://localhost/a"], 1, "address_invalid"),
        (["good.safetensors", "oci://localhost:1/a"], 1, "remote_unreachable"),
        (["good.safetensors", "oci://localhost:1/a", "--signature", "other.sig"], 1, "signature_invalid"),
        (["good.safetensors", "oci://localhost:1/a", "--version", "1"], 2, "--version"),
        (["idle", "oci://localhost:1/a", "--signature", "other.sig"], 2, "--signature"),
        (["good.safetensors", "oci://localhost:1/a", "--public"], 2, "--public"),
    ],
)
def test_a_push_that_cannot_work_is_refused_with_a_reason(run, tmp_path, arguments, exit_code, message):
    Store.open(tmp_path / "store").add("idle", sample_bundle(domain="idle"))
    (tmp_path / "broken.safetensors").write_bytes(DATA[:50])
    (tmp_path / "good.safetensors").write_bytes(DATA)
    (tmp_path / "other.sig").write_bytes(sign_bundle(digest_bytes(OTHER), "x", private_key()))
    assert message in run(push_app, *arguments, code=exit_code).stderr


@pytest.mark.parametrize("options", [["--activate"], ["--output", "a", "--store", "b"]])
def test_options_of_a_pull_that_do_not_fit_together_are_refused(run, options):
    run(pull_app, "oci://localhost:1/a", *options, code=2)
