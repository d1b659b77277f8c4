"""Ed25519 keys made from numbers, so that tests are deterministic."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from prompt_store.signing_keys import TrustedKey


def private_key(number=0):
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def trusted_key(number=0):
    return TrustedKey(private_key(number).public_key())


def write_keys(folder, number=0, password=None):
    """Write a key pair as PEM files and return their paths: private, public."""
    key = private_key(number)
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    private, public = folder / f"key{number}.pem", folder / f"key{number}.pub"
    private.touch(0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public
