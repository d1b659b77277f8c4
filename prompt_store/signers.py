"""The signatures of stored versions, and the keys that made them."""

from typing import TYPE_CHECKING, Final

from prompt_store.errors import SignatureError
from prompt_store.layout import Layout
from prompt_store.signature_files import read_signatures
from prompt_store.signatures import key_hint
from prompt_store.store import Store
from prompt_store.versions import SignatureInfo

if TYPE_CHECKING:
    from prompt_store.signing_keys import SignaturePolicy

NO_KEY: Final = "No public key was given to verify it with."


def signature_infos(store: Store, digest: str, keys: "SignaturePolicy | None") -> list[SignatureInfo]:
    """Return the stored signatures of a bundle, verified with the keys of a policy; without one none is verified.

    Of a store in a bucket those of the copy: a list of many versions needs no request for each of them.

    Raises:
        StoreReadOnlyError: `storage_busy`.
    """
    try:
        signatures = read_signatures(Layout(store.root), digest)
    except SignatureError as error:
        return [SignatureInfo("", problem=str(error))]
    return [_info(data, digest, keys) for data in signatures]


def _info(data: bytes, digest: str, keys: "SignaturePolicy | None") -> SignatureInfo:
    hint = ""
    try:
        hint = key_hint(data)
        if keys is None:
            return SignatureInfo(hint, problem=NO_KEY)
        return SignatureInfo(hint, keys.signer(data, digest).name)
    except SignatureError as error:
        return SignatureInfo(hint, problem=str(error))
