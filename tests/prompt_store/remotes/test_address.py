"""Addresses of bundles in registries and on the Hub."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_store.errors import RemoteError
from prompt_store.remotes.address import is_loopback, parse_hub_address, parse_registry_address
from tests.prompt_store.remotes.opening import opened

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "host", "name", "reference"),
    [
        ("oci://ghcr.io/acme/flowers", "ghcr.io", "acme/flowers", "latest"),
        ("oci://localhost:5000/flowers:v1.2", "localhost:5000", "flowers", "v1.2"),
        ("oci://[::1]:5000/a/b/c_d:1", "[::1]:5000", "a/b/c_d", "1"),
        (f"oci://ghcr.io/acme/flowers@{DIGEST}", "ghcr.io", "acme/flowers", DIGEST),
        (f"oci://ghcr.io/acme/flowers:2@{DIGEST}", "ghcr.io", "acme/flowers", DIGEST),
    ],
)
def test_a_registry_address_has_a_host_a_name_and_a_tag_or_digest(text, host, name, reference):
    address = parse_registry_address(text)
    assert (address.host, address.name, address.reference) == (host, name, reference)
    assert parse_registry_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [("hf://acme/flowers", "acme/flowers", None), ("hf://acme/flowers@refs/pr/1", "acme/flowers", "refs/pr/1")],
)
def test_a_hub_address_has_a_repository_and_a_revision(text, repository, revision):
    address = parse_hub_address(text)
    assert (address.repository, address.revision, str(address)) == (repository, revision, text)


@pytest.mark.parametrize(
    "text",
    [
        "", "flowers.safetensors", "s4://bucket/x", "oci://", "oci://host", "oci://host/", "oci://host/UPPER",
        "oci://host/a:b:c", "oci://host/a@sha256:12", "oci://host/../a", "oci://host/a//b", "oci://host/a?x=1",
        "oci://-host/a", "hf://flowers", "hf://acme/flowers/extra", "hf://acme/flowers@", "hf://acme/flowers@../x y",
        "hf://../../etc", "oci://host/" + "a" * 600,
        "oci://a..b/x", "oci://a-.b/x", f"oci://{'a' * 64}.example/x", "oci://host:65536/x", "oci://host:0/x",
        "oci://[1:2]/x", "oci://[::1:::]/x",
    ],
)  # fmt: skip
def test_any_other_text_is_refused_with_the_expected_form(text):
    with pytest.raises(RemoteError, match="Expected") as refused:
        opened(text)
    assert refused.value.code == "address_invalid"


@pytest.mark.parametrize("text", ["oci://carol:secret@ghcr.io/acme/flowers", "hf://carol:secret@acme/flowers"])
def test_a_password_in_an_address_is_refused_and_not_repeated(text):
    with pytest.raises(RemoteError, match="docker login") as refused:
        opened(text)
    assert "secret" not in str(refused.value)


@given(st.text(max_size=40))
def test_no_text_breaks_the_parsers(text):
    for parse, scheme in ((parse_registry_address, "oci"), (parse_hub_address, "hf")):
        shown = ""
        try:
            assert parse(str(address := parse(f"{scheme}://{text}"))) == address
        except RemoteError as error:
            shown = str(error)
        assert shown.isprintable()


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:80", "[::1]:5000", "[::1]", "::1"],
)
def test_this_machine_is_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "10.0.0.1:5000", "localhost.example.com", ""])
def test_other_hosts_are_not_loopback(host):
    assert not is_loopback(host)
