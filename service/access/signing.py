"""The public keys of `require_signature`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prompt_store.errors import SignatureError
from service.errors import SettingsError
from service.settings import Settings

if TYPE_CHECKING:
    from prompt_store.signing_keys import SignaturePolicy


def load_policy(settings: Settings) -> SignaturePolicy | None:
    """The bundles that may be served, None for all; the files are read once, at startup.

    Raises:
        SettingsError: a file is missing, or not an Ed25519 public key.
    """
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
