"""Users and passwords from docker's configuration."""

import base64
import json
import os

import pytest

from prompt_store.errors import RemoteError
from prompt_store.remotes.docker_config import read_credentials


def auth(user, password):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def write(no_login):
    def write_config(config):
        (no_login / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))

    return write_config


def test_without_a_configuration_there_are_no_credentials(write):
    assert read_credentials("ghcr.io") is None
    write({})
    assert read_credentials("ghcr.io") is None


@pytest.mark.parametrize("key", ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v2/", "http://ghcr.io/"])
def test_an_entry_of_docker_login_is_found_by_its_host(write, key):
    write({"auths": {"quay.io": auth("other", "1"), key: auth("carol", "a:b")}})
    assert read_credentials("ghcr.io") == ("carol", "a:b")
    assert read_credentials("ghcr.io:5000") is None
    assert read_credentials("evil-ghcr.io") is None


def test_docker_hub_has_its_own_key(write):
    write({"auths": {"https://index.docker.io/v1/": auth("carol", "secret")}})
    assert read_credentials("docker.io") == ("carol", "secret")


def test_a_variable_takes_precedence_over_the_file(write, monkeypatch):
    write({"auths": {"ghcr.io": auth("file", "1")}})
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"ghcr.io": {"username": "v", "password": "2"}}}))
    assert read_credentials("ghcr.io") == ("v", "2")


def test_a_credential_helper_is_run(write, monkeypatch, tmp_path):
    helper = tmp_path / "docker-credential-tests"
    helper.write_text('#!/bin/sh\nread host\n[ "$host" = ghcr.io ] || exit 1\necho \'{"Username":"u","Secret":"s"}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write({"credHelpers": {"ghcr.io": "tests"}, "auths": {"quay.io": auth("q", "1")}})
    assert read_credentials("ghcr.io") == ("u", "s")
    write({"credsStore": "tests", "auths": {"quay.io": auth("q", "1")}})
    assert read_credentials("ghcr.io") == ("u", "s")
    assert read_credentials("quay.io") == ("q", "1")  # the helper has no entry


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "not JSON"),
        ([], "not a configuration"),
        ({"auths": []}, "not a configuration"),
        ({"auths": {"ghcr.io": {"auth": "%%"}}}, "not base64"),
        ({"auths": {"ghcr.io": {"auth": base64.b64encode(b"nocolon").decode()}}}, "USER:PASSWORD"),
        ({"auths": {"ghcr.io": {"identitytoken": "t"}}}, "identity token"),
        ({"credHelpers": {"ghcr.io": "../evil"}}, "invalid credential helper"),
        ({"credHelpers": {"ghcr.io": "does-not-exist"}}, "which failed"),
    ],
)
def test_an_unusable_configuration_is_an_error_that_names_the_file(write, no_login, config, problem):
    write(config)
    with pytest.raises(RemoteError, match=problem) as refused:
        read_credentials("ghcr.io")
    assert refused.value.code == "credentials_invalid"
    assert str(no_login / "config.json") in str(refused.value)
