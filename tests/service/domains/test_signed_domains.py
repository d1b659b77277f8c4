"""With `require_signature` a service serves nothing that is not signed, whichever way it comes."""

import base64
import shutil

import pytest

from prompt_store import Store, digest_bytes
from prompt_store.errors import VersionExistsError
from prompt_store.signing_keys import sign_bundle
from service.access.signing import load_signing
from service.errors import SettingsError
from service.settings import Settings
from tests.prompt_store.keys import private_key, trusted_key, write_keys
from tests.service.engine.engine_rows import until
from tests.service.examples.colours import add_colours
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True

FIRST, SECOND = colour_bundle(), colour_bundle(seed=1)


def signature_of(data, number=0):
    return sign_bundle(digest_bytes(data), "paint.safetensors", private_key(number))


def header(signature):
    return {"Caspl-Signature": base64.b64encode(signature).decode()}


@pytest.fixture
def store(tmp_path):
    """The domain `paint` with a live, signed version."""
    store = Store.open(tmp_path / "store")
    store.add("paint", FIRST, signature=signature_of(FIRST))
    store.activate("paint", 1)
    return store


@pytest.fixture
def public_key(tmp_path):
    return write_keys(tmp_path)[1]


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refused_uploads():
    """Name, bundle, signature, expected status and code."""
    signature = signature_of(SECOND)
    yield "unsigned", SECOND, None, 403, "signature_required"
    yield "by another key", SECOND, signature_of(SECOND, 1), 403, "signature_invalid"
    yield "of another version", SECOND, signature_of(FIRST), 403, "signature_invalid"
    yield "of another domain", SECOND, signature_of(colour_bundle("ink")), 403, "signature_invalid"
    yield "a bit of the signature", SECOND, flipped(signature, 8 * 700), 403, "signature_invalid"
    yield "a bit of the bundle", flipped(SECOND, 8 * len(SECOND) - 9), signature, 403, "signature_invalid"
    yield "no signature file", SECOND, b"{}", 403, "signature_invalid"
    yield (
        "a bundle of another domain with its signature",
        colour_bundle("ink"),
        signature_of(colour_bundle("ink")),
        422,
        "manifest_mismatch",
    )


@pytest.mark.parametrize("case", list(refused_uploads()), ids=lambda case: case[0])
async def test_an_upload_without_a_valid_signature_is_refused_and_changes_nothing(serve, store, public_key, case):
    _, data, signature, status, code = case
    async with serve(require_signature=[public_key]) as client:
        before = tree(store.root)
        answer = await client.post(
            "/domains/paint/versions?activate=true", content=data, headers=header(signature) if signature else {}
        )
        served = (await client.post("/classify/paint", content=picture())).json()
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert served["version"] == 1
    assert tree(store.root) == before


async def test_a_signed_upload_goes_live_and_back(serve, store, public_key):
    async with serve(require_signature=[public_key]) as client:
        answer = await client.post(
            "/domains/paint/versions?activate=true", content=SECOND, headers=header(signature_of(SECOND))
        )
        assert answer.status_code == 201, answer.text
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 2
        assert (await client.post("/domains/paint/rollback")).json()["version"] == 1
    assert store.signatures(digest_bytes(SECOND)) == [signature_of(SECOND)]


async def test_any_of_several_keys_is_enough(serve, tmp_path, public_key):
    other = write_keys(tmp_path, 1)[1]
    async with serve(require_signature=[public_key, other]) as client:
        answer = await client.post("/domains/paint/versions", content=SECOND, headers=header(signature_of(SECOND, 1)))
    assert answer.status_code == 201


async def test_a_header_that_is_not_base64_is_refused(serve):
    async with serve() as client:
        answer = await client.post("/domains/paint/versions", content=SECOND, headers={"Caspl-Signature": "!"})
    assert (answer.status_code, answer.json()["code"]) == (403, "signature_invalid")


async def test_without_the_setting_an_unsigned_bundle_is_served_but_a_wrong_signature_is_refused(serve, store):
    async with serve() as client:
        wrong = await client.post("/domains/paint/versions", content=SECOND, headers=header(signature_of(FIRST)))
        fine = await client.post("/domains/paint/versions?activate=true", content=SECOND)
    assert (wrong.status_code, wrong.json()["code"]) == (403, "signature_invalid")
    assert fine.status_code == 201


async def test_an_unsigned_version_of_the_store_cannot_be_activated_or_asked_for(serve, store, public_key):
    store.add("paint", SECOND)
    async with serve(require_signature=[public_key]) as client:
        activated = await client.put("/domains/paint/live", json={"version": 2})
        asked = await client.post("/classify/paint?version=2", content=picture())
        served = (await client.post("/classify/paint", content=picture())).json()
        store.add_signature("paint", 2, signature_of(SECOND))
        later = await client.put("/domains/paint/live", json={"version": 2})
    assert (activated.status_code, activated.json()["code"]) == (403, "signature_required")
    assert (asked.status_code, asked.json()["code"]) == (403, "signature_required")
    assert served["version"] == 1
    assert later.status_code == 200
    assert store.live("paint").version == 2


async def test_a_rollback_to_an_unsigned_version_is_refused_and_the_live_one_stays(serve, store, public_key):
    store.add("paint", SECOND)
    store.activate("paint", 2)
    third = colour_bundle(seed=2)
    store.add("paint", third, signature=signature_of(third))
    store.activate("paint", 3)
    async with serve(require_signature=[public_key]) as client:
        answer = await client.post("/domains/paint/rollback")
        served = (await client.post("/classify/paint", content=picture())).json()
    assert (answer.status_code, answer.json()["code"]) == (403, "signature_required")
    assert served["version"] == 3
    assert store.live("paint").version == 3


async def test_at_startup_an_unsigned_live_version_is_not_served_and_other_domains_are(serve, store, public_key):
    store.add("ink", colour_bundle("ink", ("blue", "red")))
    store.activate("ink", 1)
    async with serve(require_signature=[public_key]) as client:
        shown = (await client.get("/domains/ink")).json()
        ink = await client.post("/classify/ink", content=picture())
        paint = await client.post("/classify/paint", content=picture())
    assert (shown["state"], shown["error"]) == ("broken", "signature_required")
    assert (ink.status_code, paint.status_code) == (503, 200)


async def test_at_startup_a_signature_with_a_changed_bit_is_not_accepted(serve, store, public_key):
    (path,) = (store.root / "signatures").rglob("*.json")
    path.chmod(0o644)
    path.write_bytes(flipped(path.read_bytes(), 8 * 700))
    async with serve(require_signature=[public_key]) as client:
        shown = (await client.get("/domains/paint")).json()
    assert (shown["state"], shown["error"]) == ("broken", "signature_invalid")


async def test_a_signature_that_was_moved_to_another_bundle_is_not_accepted(serve, store, public_key):
    (path,) = (store.root / "signatures").rglob("*.json")
    store.add("paint", SECOND)
    target = digest_bytes(SECOND).removeprefix("sha256:")
    moved = store.root / "signatures" / target[:2] / f"{target}-{path.stem.partition('-')[2]}.json"
    moved.parent.mkdir(exist_ok=True)
    shutil.copy(path, moved)
    async with serve(require_signature=[public_key]) as client:
        answer = await client.put("/domains/paint/live", json={"version": 2})
    assert (answer.status_code, answer.json()["code"]) == (403, "signature_invalid")


async def test_an_unsigned_activation_by_another_process_is_not_followed(serve, store, public_key):
    async with serve(require_signature=[public_key], store_poll_s=0.05) as client:
        other = Store.open(store.root)
        other.add("paint", SECOND)
        other.activate("paint", 2)
        await until(lambda: client.context.table.states["paint"].error == "signature_required")
        shown = (await client.get("/domains/paint")).json()
        served = (await client.post("/classify/paint", content=picture())).json()
    assert (shown["state"], shown["version"], served["version"]) == ("stale", 1, 1)


async def test_a_fit_is_not_based_on_a_version_that_lost_its_signature(serve, store, public_key):
    async with serve(require_signature=[public_key]) as client:
        add_colours(client.context.examples)
        shutil.rmtree(store.root / "signatures")
        answer = await client.get("/domains/paint/fit")
    assert (answer.status_code, answer.json()["code"]) == (403, "signature_required")


async def test_a_service_that_cannot_sign_makes_no_bundles(serve, public_key):
    async with serve(require_signature=[public_key]) as client:
        created = await client.put("/domains/fresh", json={"classes": ["red", "blue"]})
        fitted = await client.post("/domains/paint/fit")
    assert (created.status_code, created.json()["code"]) == (403, "signature_required")
    assert (fitted.status_code, fitted.json()["code"]) == (403, "signature_required")
    assert "sign it with `caspl bundle sign`" in fitted.json()["detail"]


@pytest.fixture
def keys(tmp_path):
    """The paths of a private key and its public one."""
    return write_keys(tmp_path)


async def test_a_service_with_a_key_signs_its_fits_and_new_domains(serve, store, keys):
    private, public = keys
    own = {"name": "key0", "key": trusted_key().hint, "is_verified": True, "problem": ""}
    async with serve(require_signature=[public], signing_key=private) as client:
        created = await client.put("/domains/fresh", json={"classes": ["red", "blue"]})
        add_colours(client.context.examples)
        fitted = await client.post("/domains/paint/fit")
        assert (created.status_code, fitted.status_code) == (201, 201), created.text + fitted.text
        listed = (await client.get("/domains/paint/versions")).json()["versions"]
        shown = (await client.get("/domains/fresh/versions/1")).json()
    assert [one["signatures"] for one in listed] == [[own], [own]]
    assert (shown["signatures"], shown["manifest"]["domain"]) == ([own], "fresh")
    for answer in (created, fitted):
        digest = answer.json()["digest"]
        name = f"{answer.json()['domain']}.safetensors"
        assert store.signatures(digest) == [sign_bundle(digest, name, private_key())]
    async with serve(require_signature=[public]) as client:  # without the private key they are served all the same
        states = [one["state"] for one in (await client.get("/domains")).json()["domains"]]
        refused = await client.post("/domains/paint/fit")
    assert states == ["live", "live"]
    assert (refused.status_code, refused.json()["code"]) == (403, "signature_required")


async def test_a_service_without_required_signatures_signs_too_and_verifies_with_its_own_key(serve, store, keys):
    store.add("paint", SECOND, signature=signature_of(SECOND, 1))
    store.add("paint", colour_bundle(seed=2))
    async with serve(signing_key=keys[0]) as client:
        await client.put("/domains/fresh", json={"classes": ["red", "blue"]})
        domains = ("paint", "fresh")
        listed = [(await client.get(f"/domains/{name}/versions")).json()["versions"] for name in domains]
    (first, second, third), (fresh,) = [[one["signatures"] for one in versions] for versions in listed]
    assert [one["is_verified"] for one in (*first, *fresh)] == [True, True]
    assert (second[0]["key"], second[0]["name"], second[0]["is_verified"]) == (trusted_key(1).hint, "", False)
    assert second[0]["problem"].startswith("The signature is by another key.")
    assert third == []


async def test_a_service_without_keys_shows_who_signed_and_that_it_is_not_verified(serve, store):
    async with serve() as client:
        (one,) = (await client.get("/domains/paint/versions")).json()["versions"]
    assert one["signatures"] == [
        {
            "key": trusted_key().hint,
            "name": "",
            "is_verified": False,
            "problem": "No public key was given to verify it with.",
        }
    ]


async def test_a_damaged_signature_is_shown_as_such_and_hides_no_version(serve, store, public_key):
    store.add("paint", SECOND, signature=signature_of(SECOND))
    digest = digest_bytes(FIRST).removeprefix("sha256:")
    (path,) = (store.root / "signatures" / digest[:2]).glob(f"{digest}-*")
    path.chmod(0o644)
    path.write_bytes(flipped(path.read_bytes(), 8 * 700))
    async with serve(require_signature=[public_key]) as client:
        first, second = (await client.get("/domains/paint/versions")).json()["versions"]
    assert [(one["key"], one["is_verified"]) for one in first["signatures"]] == [("", False)]
    assert "is damaged" in first["signatures"][0]["problem"]
    assert [one["is_verified"] for one in second["signatures"]] == [True]


async def test_an_older_version_that_a_fit_repeats_gets_the_signature_that_it_lacks(serve, store, keys):
    private, public = keys
    store.add("paint", SECOND)  # from before there was a key
    third = colour_bundle(seed=2)
    store.add("paint", third, signature=signature_of(third))
    async with serve(require_signature=[public], signing_key=private) as client:
        with pytest.raises(VersionExistsError):
            await client.context.publisher.publish_own("paint", SECOND, activate=True, actor="", origin="fit")
        activated = await client.put("/domains/paint/live", json={"version": 2})
    assert activated.status_code == 200, activated.text
    assert store.signatures(digest_bytes(SECOND)) == [signature_of(SECOND)]


def refused_keys(folder):
    """Settings, and a part of the reason why the service does not start with them."""
    private, public = write_keys(folder)
    public.chmod(0o600)
    (folder / "encrypted").mkdir()
    encrypted, _ = write_keys(folder / "encrypted", password="secret")
    (folder / "open").mkdir()
    readable, _ = write_keys(folder / "open")
    readable.chmod(0o644)
    (folder / "certificate").touch(0o600)
    other = write_keys(folder, 1)[1]
    return {
        "not among the public keys": (
            {"signing_key": private, "require_signature": [other]},
            f"{trusted_key().hint[:16]}, is not among those of require_signature: key1 ({trusted_key(1).hint[:16]})",
        ),
        "readable by others": ({"signing_key": readable}, "is accessible to other users; run `chmod 600"),
        "encrypted": ({"signing_key": encrypted}, "is encrypted. `openssl pkey -in"),
        "a public key": ({"signing_key": public}, "is not an Ed25519 private key in PEM"),
        "no key": ({"signing_key": folder / "certificate"}, "is not an Ed25519 private key in PEM"),
        "missing": ({"signing_key": folder / "none.pem"}, "Cannot read the signing key"),
    }


REFUSED = ("not among the public keys", "readable by others", "encrypted", "a public key", "no key", "missing")


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_signing_key_is_refused_at_startup_with_the_reason(tmp_path, case):
    settings, reason = refused_keys(tmp_path)[case]
    with pytest.raises(SettingsError) as caught:
        load_signing(Settings(**settings))
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)
