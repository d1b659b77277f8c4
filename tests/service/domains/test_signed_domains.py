"""With `require_signature` a service serves nothing that is not signed, whichever way it comes."""

import base64
import shutil

import pytest

from prompt_store import Store, digest_bytes
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key, write_keys
from tests.service.engine.engine_rows import until
from tests.service.examples.colours import add_colours
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

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
