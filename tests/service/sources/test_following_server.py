"""A signed bundle goes from one store through a real registry to a live domain of a real server elsewhere."""

import json
import subprocess
import sys

import pytest

from prompt_store import Store, digest_bytes
from prompt_store.signing_keys import sign_bundle
from tests.architecture.repository import ROOT
from tests.prompt_store.keys import private_key, write_keys
from tests.prompt_store.remotes.registries import running_registry
from tests.service.fakes import colour_bundle, picture
from tests.service.processes import client_of, environment, eventually, serving

pytestmark = pytest.mark.slow

FIRST, SECOND = colour_bundle(seed=1), colour_bundle(seed=2)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def key(tmp_path):
    return str(write_keys(tmp_path)[1])


@pytest.fixture
def stores(tmp_path):
    """The store of a machine that makes bundles, with a signed live version, and an empty one of a server."""
    made, served = (Store.open(tmp_path / name) for name in ("made", "served"))
    publish(made, FIRST)
    return made, served


def publish(store, data, signer=0):
    signature = None if signer is None else sign_bundle(digest_bytes(data), "paint.safetensors", private_key(signer))
    store.activate("paint", store.add("paint", data, signature=signature).version)


def caspl(*arguments, code=0):
    """Run a command as a user does; its JSON, or that of its error."""
    run = subprocess.run(
        [sys.executable, "-P", "-m", "caspl", *map(str, arguments), "--json"],
        cwd=ROOT, env=environment() | {"NO_PROXY": "127.0.0.1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    return json.loads(run.stderr if code else run.stdout)


def digest_that_answers(client):
    answer = client.post("/classify/paint", content=picture())
    return answer.json()["digest"] if answer.status_code == 200 else None


def test_two_commands_bring_a_signed_bundle_to_a_live_domain(host, stores, key):
    made, served = stores
    address = f"oci://{host}/caspl/paint:two-commands"
    with serving(served, require_signature=[key], store_poll_s=0.2) as (_, url), client_of(url) as client:
        assert digest_that_answers(client) is None
        pushed = caspl("push", "paint", address, "--store", made.root)
        caspl("pull", address, "--require-signature", key, "--store", served.root, "--activate")
        eventually(lambda: digest_that_answers(client) == digest_bytes(FIRST))
    assert pushed["n_signatures"] == 1
    assert [entry.action for entry in served.history("paint")] == ["publish", "activate"]


def test_a_tampered_bundle_is_refused_with_its_code(stores, key, tmp_path):
    made, served = stores
    with running_registry(tmp_path) as host:
        address = f"oci://{host}/caspl/paint:tampered"
        caspl("push", "paint", address, "--store", made.root)
        digits = digest_bytes(FIRST).removeprefix("sha256:")
        (blob,) = (tmp_path / "registry").glob(f"**/blobs/sha256/{digits[:2]}/{digits}/data")
        blob.write_bytes(FIRST[:-1] + bytes([FIRST[-1] ^ 1]))
        refused = caspl("pull", address, "--store", served.root, "--activate", code=3)
    assert refused["error"]["code"] == "digest_mismatch"
    publish(made, SECOND, signer=1)
    with running_registry(tmp_path) as host:
        address = f"oci://{host}/caspl/paint:other-key"
        caspl("push", "paint", address, "--store", made.root)
        refused = caspl("pull", address, "--require-signature", key, "--store", served.root, code=1)
    assert refused["error"]["code"] == "signature_invalid"
    assert served.domains() == []


@pytest.mark.parametrize("web_workers", [0, 1])
def test_a_server_follows_a_registry_and_serves_on_when_it_is_gone(stores, key, tmp_path, web_workers):
    made, served = stores
    with running_registry(tmp_path) as host:
        address = f"oci://{host}/caspl/paint:live"
        settings = {"follow": [address], "follow_every_s": 0.2, "require_signature": [key], "web_workers": web_workers}
        caspl("push", "paint", address, "--store", made.root)
        with serving(served, **settings) as (_, url), client_of(url) as client:

            def source():
                (state,) = client.get("/readyz").json()["sources"]
                return state

            eventually(lambda: digest_that_answers(client) == digest_bytes(FIRST))
            publish(made, colour_bundle(seed=3), signer=None)
            caspl("push", "paint", address, "--store", made.root)
            eventually(lambda: source()["error"] == "signature_required")
            publish(made, SECOND)
            caspl("push", "paint", address, "--store", made.root)
            eventually(lambda: digest_that_answers(client) == digest_bytes(SECOND))
    with serving(served, **settings) as (_, url), client_of(url) as client:  # the registry is gone
        assert digest_that_answers(client) == digest_bytes(SECOND)
        eventually(lambda: client.get("/readyz").json()["sources"][0]["error"] == "remote_unreachable")
        assert digest_that_answers(client) == digest_bytes(SECOND)
        assert client.get("/readyz").status_code == 200


def test_a_server_with_an_invalid_address_does_not_start():
    run = subprocess.run(
        [sys.executable, "-P", "-m", "caspl", "serve", "--random-weights", "--follow", "flowers.safetensors"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert run.returncode == 2
    assert "Not an address of a bundle: flowers.safetensors" in run.stderr
