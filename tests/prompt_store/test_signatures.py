"""Signatures of bundles: what is accepted, and that nothing else is."""

import base64
import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from prompt_store import SignatureError, Store, digest_bytes
from prompt_store.cli import bundle_app, store_app
from prompt_store.errors import ConflictError
from prompt_store.repair import check_store
from prompt_store.signature_files import MAX_SIGNATURES
from prompt_store.signatures import parse_signature
from prompt_store.signing_keys import (
    SignaturePolicy,
    load_private_key,
    load_public_key,
    sign_bundle,
    verify_signature,
)
from prompt_store.strict_json import dump_canonical
from tests.prompt_store.keys import private_key, trusted_key, write_keys
from tests.prompt_store.samples import sample_bundle

BUNDLE = sample_bundle()
DIGEST = digest_bytes(BUNDLE)
SIGNATURE = sign_bundle(DIGEST, "flowers.safetensors", private_key())


def refusal(signature, digest=DIGEST, keys=(0,)):
    with pytest.raises(SignatureError) as caught:
        verify_signature(signature, digest, [trusted_key(number) for number in keys])
    return caught.value


def changed(**changes):
    """The signature with changed fields of the envelope, signed by the same key if the payload changed."""
    document = json.loads(SIGNATURE)
    document["dsseEnvelope"] |= changes
    return dump_canonical(document)


def with_statement(**changes):
    """A correctly signed envelope with another statement."""
    statement = json.loads(base64.b64decode(json.loads(SIGNATURE)["dsseEnvelope"]["payload"])) | changes
    payload = dump_canonical(statement)
    message = f"DSSEv1 28 application/vnd.in-toto+json {len(payload)} ".encode() + payload
    signed = {"sig": base64.b64encode(private_key().sign(message)).decode(), "keyid": ""}
    return changed(payload=base64.b64encode(payload).decode(), signatures=[signed])


def test_a_signature_is_accepted_with_its_key_among_several():
    keys = [trusted_key(1), trusted_key(0)]

    assert verify_signature(SIGNATURE, DIGEST, keys) is keys[1]


def test_the_same_key_signs_the_same_bundle_with_the_same_bytes():
    assert sign_bundle(DIGEST, "flowers.safetensors", private_key()) == SIGNATURE


def test_no_single_bit_of_a_signature_can_change():
    key = trusted_key()
    for index in range(8 * len(SIGNATURE)):
        flipped = bytearray(SIGNATURE)
        flipped[index // 8] ^= 1 << index % 8
        with pytest.raises(SignatureError):
            verify_signature(bytes(flipped), DIGEST, [key])


def test_no_single_bit_of_a_bundle_can_change():
    key = trusted_key()
    for index in range(0, 8 * len(BUNDLE), 7):  # every byte, and every bit of it in turn
        flipped = bytearray(BUNDLE)
        flipped[index // 8] ^= 1 << index % 8
        with pytest.raises(SignatureError, match="another bundle"):
            verify_signature(SIGNATURE, digest_bytes(bytes(flipped)), [key])


def test_another_key_another_domain_and_another_version_are_refused():
    other_domain = sign_bundle(digest_bytes(sample_bundle(0, "weeds")), "weeds.safetensors", private_key())
    other_version = sign_bundle(digest_bytes(sample_bundle(1)), "flowers.safetensors", private_key())

    assert "another key" in str(refusal(SIGNATURE, keys=(1, 2)))
    assert "another bundle" in str(refusal(other_domain))
    assert "another bundle" in str(refusal(other_version))


def test_a_key_that_is_only_named_is_refused():
    document = json.loads(sign_bundle(DIGEST, "flowers.safetensors", private_key(1)))
    document["verificationMaterial"]["publicKey"]["hint"] = trusted_key(0).hint

    assert "changed after signing" in str(refusal(dump_canonical(document)))


@pytest.mark.parametrize(
    "changes",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"subject": []},
        {"subject": [{"name": "x", "digest": {"sha256": DIGEST.removeprefix("sha256:")}}]},
        {"predicate": {"resources": [{"name": ".", "algorithm": "blake2b", "digest": DIGEST.removeprefix("sha256:")}]}},
        {"predicate": {"resources": 2 * [{"name": ".", "algorithm": "sha256", "digest": DIGEST[7:]}]}},
        {"predicate": {"resources": None}},
        {"predicate": None},
    ],
    ids=str,
)
def test_other_statements_by_the_key_are_refused(changes):
    assert refusal(with_statement(**changes)).code == "signature_invalid"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"-----BEGIN PUBLIC KEY-----",
        SIGNATURE + b"x",
        SIGNATURE[:-1],
        b" " + SIGNATURE,
        SIGNATURE + 9000 * b" ",
        SIGNATURE.replace(b'"sig":', b'"sig":"","sig":'),
        changed(signatures=[]),
        changed(signatures=2 * json.loads(SIGNATURE)["dsseEnvelope"]["signatures"]),
        changed(payloadType="text/plain"),
        changed(payload="AAA"),
        changed(payload="é"),
        changed(payload=7),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_other_files_are_refused(data):
    assert refusal(data).code == "signature_invalid"
    with pytest.raises(SignatureError):
        parse_signature(data, DIGEST)


def test_without_a_key_only_the_bundle_of_a_signature_is_checked():
    parse_signature(sign_bundle(DIGEST, "x", private_key(5)), DIGEST)
    with pytest.raises(SignatureError, match="another bundle"):
        parse_signature(SIGNATURE, digest_bytes(b"other"))


def test_the_layout_is_that_of_model_signing():
    document = json.loads(SIGNATURE)
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    resource = DIGEST.removeprefix("sha256:")

    assert document["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert document["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    assert statement["predicate"]["resources"] == [{"name": ".", "algorithm": "sha256", "digest": resource}]
    root = hashlib.sha256(bytes.fromhex(resource)).hexdigest()
    assert statement["subject"] == [{"name": "flowers.safetensors", "digest": {"sha256": root}}]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_keys_of_openssl_sign_and_openssl_verifies_the_signatures(tmp_path):
    def openssl(*arguments):
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
    signature = sign_bundle(DIGEST, "flowers.safetensors", load_private_key(tmp_path / "key.pem"))
    envelope = json.loads(signature)["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "message").write_bytes(f"DSSEv1 28 application/vnd.in-toto+json {len(payload)} ".encode() + payload)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))

    options = ["pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin", "-in", "message", "-sigfile", "sig"]
    assert "Verified Successfully" in openssl(*options)
    verify_signature(signature, DIGEST, [load_public_key(tmp_path / "key.pub")])


def test_a_policy_needs_one_signature_by_one_of_its_keys():
    policy = SignaturePolicy([trusted_key(1), trusted_key(2)])
    by = [sign_bundle(DIGEST, "x", private_key(number)) for number in range(3)]

    policy.check(DIGEST, [by[0], by[2]])
    for signatures, code in (([], "signature_required"), ([by[0]], "signature_invalid")):
        with pytest.raises(SignatureError) as caught:
            policy.check(DIGEST, signatures)
        assert caught.value.code == code


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    store.add("flowers", BUNDLE, signature=SIGNATURE)
    return store


def signature_files(store):
    return sorted((store.root / "signatures").rglob("*.json"))


def test_a_signature_is_stored_with_its_version_and_is_not_an_entry_of_the_history(store):
    assert store.signatures(DIGEST) == [SIGNATURE]
    assert store.signatures(digest_bytes(b"other")) == []
    assert [entry.action for entry in store.history("flowers")] == ["publish"]


def test_a_signature_of_another_bundle_is_not_stored_and_nor_is_the_bundle(tmp_path):
    store = Store.open(tmp_path / "store")

    with pytest.raises(SignatureError):
        store.add("flowers", sample_bundle(1), signature=SIGNATURE)
    assert store.domains() == []
    assert not list((tmp_path / "store" / "blobs").rglob("*.*"))
    assert not (tmp_path / "store" / "signatures").exists()


def test_a_second_signature_is_kept_beside_the_first(store):
    second = sign_bundle(DIGEST, "x", private_key(1))
    store.add_signature("flowers", 1, second)
    store.add("flowers", BUNDLE, signature=second)

    assert sorted(store.signatures(DIGEST)) == sorted([SIGNATURE, second])
    assert len(store.versions("flowers")) == 1


def test_the_number_of_signatures_is_limited(store):
    for number in range(1, MAX_SIGNATURES):
        store.add_signature("flowers", 1, sign_bundle(DIGEST, "x", private_key(number)))
    with pytest.raises(ConflictError):
        store.add_signature("flowers", 1, sign_bundle(DIGEST, "x", private_key(99)))
    store.add_signature("flowers", 1, SIGNATURE)


def test_a_damaged_signature_is_not_returned_and_is_found_and_replaced(store):
    (path,) = signature_files(store)
    path.chmod(0o644)
    path.write_bytes(SIGNATURE.replace(b"v0.3", b"v0.2"))

    with pytest.raises(SignatureError, match="damaged"):
        store.signatures(DIGEST)
    found, _ = check_store(store.root)
    assert [one.path for one in found.findings if one.is_damage] == [str(path.relative_to(store.root))]
    store.add_signature("flowers", 1, SIGNATURE)
    assert store.signatures(DIGEST) == [SIGNATURE]
    assert check_store(store.root)[0].is_sound


def test_a_repair_moves_a_damaged_signature_to_the_quarantine(store):
    (path,) = signature_files(store)
    path.chmod(0o644)
    path.write_bytes(b"{}")

    found, repairs = check_store(store.root, repair=True)
    assert (found.is_sound, len(repairs)) == (True, 1)
    assert store.signatures(DIGEST) == []


def test_garbage_collection_removes_the_signatures_of_removed_bundles_only(store):
    newer = sample_bundle(1)
    store.add("flowers", newer, signature=sign_bundle(digest_bytes(newer), "x", private_key()))
    store.activate("flowers", 2)
    store.retire("flowers", 1)

    store.gc(grace_s=-1)
    assert store.signatures(DIGEST) == []
    assert len(store.signatures(digest_bytes(newer))) == 1
    assert len(signature_files(store)) == 1


@pytest.fixture
def run(tmp_path):
    def call(app, *arguments, code=0):
        environment = {"CASPL_STORE": str(tmp_path / "store")}
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "flowers.safetensors"
    path.write_bytes(BUNDLE)
    return path


def test_the_commands_sign_verify_and_publish(run, file, tmp_path):
    private, public = write_keys(tmp_path)

    run(bundle_app, "sign", file, "--key", private)
    verified = run(bundle_app, "verify-signature", file, "--public-key", public, "--json")
    added = run(store_app, "add", file)

    assert json.loads(verified.stdout)["key"] == trusted_key().hint
    assert f"with the signature {file}.sig" in added.stdout.replace("\n", "")
    assert Store.open(tmp_path / "store").signatures(DIGEST) == [SIGNATURE]


def test_verify_signature_fails_with_a_code(run, file, tmp_path):
    private, public = write_keys(tmp_path)
    _, other = write_keys(tmp_path, 1)

    missing = run(bundle_app, "verify-signature", file, "--public-key", public, code=1)
    run(bundle_app, "sign", file, "--key", private)
    foreign = run(bundle_app, "verify-signature", file, "--public-key", other, code=1)
    file.write_bytes(sample_bundle(1))
    changed_bundle = run(bundle_app, "verify-signature", file, "--public-key", public, code=1)

    assert missing.stderr.startswith("signature_required: ")
    assert "signature_invalid: The signature is by another key." in foreign.stderr
    assert "another bundle" in changed_bundle.stderr


def test_another_signature_is_not_overwritten(run, file, tmp_path):
    run(bundle_app, "sign", file, "--key", write_keys(tmp_path)[0])
    run(bundle_app, "sign", file, "--key", write_keys(tmp_path)[0])
    result = run(bundle_app, "sign", file, "--key", write_keys(tmp_path, 1)[0], code=1)

    assert "signature_exists" in result.stderr
    assert file.with_name(f"{file.name}.sig").read_bytes() == SIGNATURE


def test_a_version_is_signed_later_from_the_command_line(run, file, tmp_path):
    run(store_app, "add", file)
    run(bundle_app, "sign", file, "--key", write_keys(tmp_path)[0])
    signature = file.with_name(f"{file.name}.sig")
    run(store_app, "add-signature", "flowers", 1, signature)

    assert Store.open(tmp_path / "store").signatures(DIGEST) == [SIGNATURE]
    assert "version_not_found" in run(store_app, "add-signature", "flowers", 2, signature, code=1).stderr


def test_the_password_of_an_encrypted_key_is_prompted_for_in_a_terminal(file, tmp_path):
    encrypted, _ = write_keys(tmp_path, 2, password="secret")
    command = [sys.executable, "-P", "-m", "caspl", "bundle", "sign", str(file), "--key", str(encrypted)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)  # noqa: S606  this interpreter
    shown = b""
    while not shown.endswith(b": "):  # its end is written after earlier input has been discarded
        shown += os.read(terminal, 1000)
    os.write(terminal, b"secret\n")
    with suppress(OSError):  # the other end is closed
        while block := os.read(terminal, 1000):
            shown += block
    assert os.waitpid(pid, 0)[1] == 0, shown
    assert b"secret" not in shown
    signature = file.with_name(f"{file.name}.sig").read_bytes()
    assert verify_signature(signature, DIGEST, [trusted_key(2)])


def test_unusable_keys_are_named(run, file, tmp_path):
    private, public = write_keys(tmp_path)
    encrypted, _ = write_keys(tmp_path, 2, password="secret")

    swapped = run(bundle_app, "sign", file, "--key", public, code=1)
    secret = run(bundle_app, "sign", file, "--key", encrypted, code=1)
    assert "key_invalid" in swapped.stderr
    assert "openssl genpkey" in swapped.stderr
    assert "key_encrypted" in secret.stderr
    with pytest.raises(SignatureError, match="pubout"):
        load_public_key(private)
    assert load_private_key(encrypted, "secret").public_key() == private_key(2).public_key()
    with pytest.raises(SignatureError, match="password is wrong"):
        load_private_key(encrypted, "other")
