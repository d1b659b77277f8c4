"""A real registry: the program that Debian ships, as a process."""

import base64
import json

import httpx
import pytest

from prompt_store import digest_bytes
from prompt_store.errors import RemoteError
from prompt_store.remotes.artifact import make_artifact
from prompt_store.remotes.modelpack import ARTIFACT_TYPE, MANIFEST_TYPE
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key
from tests.prompt_store.remotes.opening import opened
from tests.prompt_store.remotes.registries import PASSWORD, USER, running_registry
from tests.prompt_store.samples import sample_bundle

DATA, NEXT = sample_bundle(), sample_bundle(1)
SIGNATURES = [sign_bundle(digest_bytes(DATA), "flowers.safetensors", private_key(number)) for number in range(2)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


def test_a_signed_bundle_comes_back_as_it_was_pushed(host):
    artifact, _ = make_artifact(DATA, SIGNATURES)
    remote = opened(f"oci://{host}/caspl/flowers:signed")
    pinned = remote.push(artifact)
    assert remote.pull() == artifact
    assert opened(pinned).pull() == artifact
    assert pinned.endswith(f":signed@{remote.newest()}")


def test_pushing_again_changes_nothing_and_another_bundle_moves_the_tag(host):
    first, second = make_artifact(DATA, ())[0], make_artifact(NEXT, ())[0]
    remote = opened(f"oci://{host}/caspl/flowers:moving")
    pinned = remote.push(first)
    assert remote.push(first) == pinned
    remote.push(second)
    assert remote.pull().bundle == NEXT
    assert opened(pinned).pull().bundle == DATA


def test_a_tag_that_does_not_exist_is_not_found(host):
    for suffix in ("flowers:none", "none:1", "flowers@sha256:" + "0" * 64):
        with pytest.raises(RemoteError) as refused:
            opened(f"oci://{host}/caspl/{suffix}").pull()
        assert refused.value.code == "remote_not_found"


def test_other_tools_find_a_modelpack_artifact_whose_first_layer_is_the_bundle(host):
    remote = opened(f"oci://{host}/caspl/flowers:tools")
    remote.push(make_artifact(DATA, ())[0])
    url = f"http://{host}/v2/caspl/flowers"
    manifest = httpx.get(f"{url}/manifests/tools", headers={"Accept": MANIFEST_TYPE}, trust_env=False).json()
    assert manifest["artifactType"] == ARTIFACT_TYPE
    assert httpx.get(f"{url}/blobs/{manifest['layers'][0]['digest']}", trust_env=False).content == DATA


def test_a_private_registry_takes_the_login_of_dockers_configuration(tmp_path, no_login):
    artifact, _ = make_artifact(DATA, SIGNATURES)

    def log_in(password):
        entry = {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}
        (no_login / "config.json").write_text(json.dumps({"auths": {host: entry}}))

    with running_registry(tmp_path, with_password=True) as host:
        remote = opened(f"oci://{host}/caspl/flowers:1")
        with pytest.raises(RemoteError, match="docker login"):
            remote.push(artifact)
        log_in("wrong")
        with pytest.raises(RemoteError, match="docker login"):
            remote.push(artifact)
        log_in(PASSWORD)
        remote.push(artifact)
        assert remote.pull() == artifact
