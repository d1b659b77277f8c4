"""The keys of signatures: the public ones that bundles must be signed with, and the service's own private one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prompt_store.digest import digest_bytes
from prompt_store.errors import SignatureError
from service.access.key_file import require_private
from service.errors import SettingsError
from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from prompt_store.signing_keys import SignaturePolicy


class Signing:
    """The signatures of one service.

    Attributes:
        policy: accepts the bundles that may be served; None accepts all.
        known: the keys that signatures of stored versions are verified with, to show them; None without any.
    """

    def __init__(
        self,
        policy: SignaturePolicy | None = None,
        *,
        known: SignaturePolicy | None = None,
        key: Ed25519PrivateKey | None = None,
    ) -> None:
        self.policy = policy
        self.known = known or policy
        self._key = key

    def require_key(self) -> None:
        """Check that this service may make bundles: all bundles may be served, or it has a key to sign its own.

        Raises:
            SignatureError: `signature_required`.
        """
        if self.policy and self._key is None:
            raise SignatureError(
                "This service serves signed bundles only, and has no key to sign its own (`signing_key`). Make the "
                "bundle elsewhere, sign it with `caspl bundle sign` and upload it.",
                code="signature_required",
            )

    def sign(self, domain: str, data: bytes) -> bytes | None:
        """The signature of a bundle that this service made; None without a key."""
        if self._key is None:
            return None
        from prompt_store.signing_keys import sign_bundle

        return sign_bundle(digest_bytes(data), f"{domain}.safetensors", self._key)


def load_signing(settings: Settings) -> Signing:
    """Read the keys of `require_signature` and `signing_key`, once, at startup.

    Raises:
        SettingsError: a file is missing, or not an Ed25519 key; the private key is encrypted, readable by other users,
            or its public key is not among those of `require_signature`.
    """
    if not settings.require_signature and settings.signing_key is None:
        return Signing()
    policy = _load_policy(settings)
    if settings.signing_key is None:
        return Signing(policy)
    from prompt_store.signing_keys import SignaturePolicy, TrustedKey

    key = _load_private_key(settings.signing_key)
    own = TrustedKey(key.public_key(), settings.signing_key.stem)
    if policy and own.hint not in {one.hint for one in policy.keys}:
        accepted = ", ".join(f"{one.name} ({one.hint[:16]})" for one in policy.keys)
        raise SettingsError(
            f"signing_key: the public key of {settings.signing_key}, {own.hint[:16]}, is not among those of "
            f"require_signature: {accepted}. Add it there: `openssl pkey -in {settings.signing_key} -pubout`."
        )
    return Signing(policy, known=policy or SignaturePolicy([own]), key=key)


def _load_policy(settings: Settings) -> SignaturePolicy | None:
    if not settings.require_signature:
        return None
    from prompt_store.signing_keys import SignaturePolicy, load_public_key

    keys = []
    for path in settings.require_signature:
        try:
            keys.append(load_public_key(path))
        except SignatureError as error:
            raise SettingsError(f"require_signature: {error}", code=error.code) from error
        except OSError as error:
            message = f"require_signature: cannot read {path}: {error.strerror}."
            raise SettingsError(message) from error
    return SignaturePolicy(keys)


def _load_private_key(path: Path) -> Ed25519PrivateKey:
    from prompt_store.signing_keys import load_private_key

    try:
        require_private(path, "signing key")
        return load_private_key(path)
    except SignatureError as error:
        message = str(error)
        if error.code == "key_encrypted":
            message = f"{path} is encrypted. `openssl pkey -in {path} -out FILE` writes it without a password."
        raise SettingsError(f"signing_key: {message}", code=error.code) from error
    except OSError as error:
        raise SettingsError(f"Cannot read the signing key {path}: {error.strerror}.") from error
