"""The Hugging Face Hub, against a stand-in of its HTTP API."""

import json
import sys

import pytest
import yaml

from prompt_store import digest_bytes
from prompt_store.errors import DigestMismatchError, LimitExceededError, RemoteError
from prompt_store.remotes.artifact import make_artifact
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key
from tests.prompt_store.remotes.hubs import TOKEN, HubServer
from tests.prompt_store.remotes.opening import opened
from tests.prompt_store.remotes.web import serving_web
from tests.prompt_store.samples import manifest_fields, sample_bundle

huggingface_hub = pytest.importorskip("huggingface_hub", reason='pip install "caspl-serve[hub]"')

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of huggingface_hub

DATA, NEXT = sample_bundle(), sample_bundle(1)
SIGNATURES = [sign_bundle(digest_bytes(DATA), "flowers.safetensors", private_key(number)) for number in range(2)]
ADDRESS = "hf://acme/flowers"


@pytest.fixture
def hub():
    return HubServer()


@pytest.fixture
def web(hub, monkeypatch):
    with serving_web(hub) as storage, serving_web(hub) as web:
        hub.storage = storage.url
        web.storage = storage
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield web


def push(data=DATA, signatures=(), address=ADDRESS, **options):
    return opened(address).push(make_artifact(data, signatures)[0], **options)


def refusal(kind, work):
    with pytest.raises(kind) as refused:
        work()
    assert str(refused.value).isprintable()
    assert TOKEN not in str(refused.value)
    return refused.value.code


def pull():
    return opened(ADDRESS).pull()


def test_a_bundle_comes_back_with_its_signatures_and_bill_of_materials(web, hub):
    pinned = push(DATA, SIGNATURES)
    artifact, _ = make_artifact(DATA, SIGNATURES)
    assert pull() == artifact
    assert pinned == f"{ADDRESS}@{hub.head}"
    assert opened(pinned).pull() == artifact
    assert opened(ADDRESS).newest() == hub.head


def test_a_new_repository_is_private_unless_it_is_meant_to_be_public(web, hub):
    push()
    assert hub.visibility == "private"
    hub.visibility = None
    push(is_public=True)
    assert hub.visibility == "public"


def test_a_push_is_one_commit_that_removes_signatures_of_the_bundle_before(web, hub):
    push(DATA, SIGNATURES)
    n_commits = len(hub.commits)
    push(NEXT)
    assert len(hub.commits) == n_commits + 1
    assert sorted(hub.files) == [".gitattributes", "README.md", "flowers.cdx.json", "flowers.safetensors"]
    assert (pull().bundle, pull().signatures) == (NEXT, ())


def test_a_push_keeps_files_that_are_no_signatures_of_the_bundle(web, hub):
    push(DATA, SIGNATURES[:1])
    added = {"LICENSE": b"x", "flowers.safetensors.md5": b"x"}
    hub.commit({**hub.files, **added, "flowers.safetensors.anna.sig": SIGNATURES[1]})
    push(NEXT)
    assert added.items() <= hub.files.items()
    assert pull().signatures == ()


def test_the_token_reaches_the_hub_and_never_the_storage_behind_it(web, hub):
    hub.is_private = True
    push()
    pull()
    assert set(web.sent("authorization")) - {None} == {f"Bearer {TOKEN}"}
    assert [request.method for request in web.storage.requests] == ["GET"]
    assert web.storage.sent("authorization") == [None]


def test_a_repository_of_another_domain_is_left_alone(web, hub):
    push(sample_bundle(domain="weeds"))
    before = dict(hub.files)
    assert refusal(RemoteError, push) == "repository_taken"
    assert hub.files == before


@pytest.mark.parametrize("name", ["flowers.safetensors", "flowers.safetensors.sig", "flowers.cdx.json"])
def test_a_tampered_file_is_refused(web, hub, name):
    push(DATA, SIGNATURES[:1])
    key = digest_bytes(DATA).removeprefix("sha256:") if name == "flowers.safetensors" else name
    hub.tampered[key] = bytes([hub.files[name][0] ^ 1]) + hub.files[name][1:]
    assert refusal(DigestMismatchError, pull) == "digest_mismatch"


def test_a_file_beyond_its_limit_is_not_downloaded(web, hub):
    push()
    fields = json.loads(hub.show(hub.head)[2])
    for file in fields["siblings"]:
        file["size"] = 2**40
    hub.changed["/api/models/acme/flowers"] = lambda request: (200, {}, json.dumps(fields).encode())
    n_requests = len(web.storage.requests)
    assert refusal(LimitExceededError, pull) == "too_large"
    assert len(web.storage.requests) == n_requests


def test_a_repository_without_exactly_one_bundle_is_refused(web, hub):
    push()
    hub.commit({"README.md": b"x"})
    assert refusal(RemoteError, pull) == "media_type_unknown"
    hub.commit({"a.safetensors": DATA, "b.safetensors": DATA})
    assert refusal(RemoteError, pull) == "media_type_unknown"


def test_further_files_are_named_and_folders_are_ignored(web, hub):
    push()
    hub.commit({**hub.files, "LICENSE": b"x", "more/extra.safetensors": b"x"})
    assert pull().others == ("LICENSE",)


def test_a_missing_repository_or_revision_is_not_found(web, hub):
    assert refusal(RemoteError, pull) == "remote_not_found"
    push()
    assert refusal(RemoteError, opened(f"{ADDRESS}@gone").pull) == "remote_not_found"


def test_a_private_repository_without_a_token_is_not_found_or_unauthorized(web, hub, monkeypatch):
    push()
    hub.is_private = True
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    assert refusal(RemoteError, pull) in {"remote_not_found", "remote_unauthorized"}


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (403, b"{}", "remote_unauthorized"),
        (500, b"{}", "remote_failed"),
        (200, b"not JSON", "remote_failed"),
        (200, b"[]", "remote_failed"),
        (200, b"{}", "remote_failed"),
        (200, b'{"id": "acme/flowers", "siblings": [{}]}', "remote_failed"),
    ],
)
def test_a_hub_that_refuses_or_fails_is_an_error(web, hub, status, body, code):
    hub.changed["/api/models/acme/flowers"] = lambda request: (status, {}, body)
    assert refusal(RemoteError, opened(ADDRESS).newest) == code


def test_offline_mode_and_a_hub_that_is_away_have_clear_errors(web, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert refusal(RemoteError, pull) == "remote_unreachable"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal(RemoteError, pull) == "remote_offline"


def test_a_hub_without_encryption_needs_an_option(web, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.example")
    assert refusal(RemoteError, lambda: opened(ADDRESS)) == "remote_insecure"
    opened(ADDRESS, plain_http=True)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "prompt_store.remotes.hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RemoteError, match=r"caspl-serve\[hub\]") as refused:
        opened(ADDRESS)
    assert refused.value.code == "extra_missing"


def card_of(data, web, hub):
    push(data)
    text = hub.files["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_model_card_has_metadata_metrics_classes_and_commands(web, hub):
    head, body = card_of(DATA, web, hub)
    assert head["pipeline_tag"] == "image-classification"
    assert {"clip", "domain:flowers"} <= set(head["tags"])
    assert "| H | 0.5 |" in body
    assert "red tulip, white rose, daisy" in body
    assert digest_bytes(DATA) in body
    assert f"caspl pull {ADDRESS} " in body


def test_the_model_card_lists_each_of_several_teachers(web, hub):
    made = manifest_fields()["provenance"] | {"teacher": {"teachers": [{"arch": "ViT-L-14"}, {"arch": "ViT-H-14"}]}}
    _, body = card_of(sample_bundle(provenance=made), web, hub)
    assert "| teacher: arch | ViT-L-14 |\n| teacher:2: arch | ViT-H-14 |" in body


def test_text_of_a_manifest_adds_no_markup_to_the_card(web, hub):
    made = manifest_fields()["provenance"] | {
        "metrics": {"<script>|\n# x": "[a](http://x)"},
        "method": "a|b",
        "teacher": {"arch": "`x`"},
    }
    head, body = card_of(sample_bundle(provenance=made), web, hub)
    assert "a|b" in head["tags"]
    assert "<script>" not in body
    assert "| &lt;script&gt;\\| # x | \\[a\\](http://x) |" in body
    assert "| method | a\\|b |" in body
