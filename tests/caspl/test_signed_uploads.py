"""Bundles that the client uploads with their signatures."""

import asyncio

import pytest

import caspl
from caspl.errors import AccessError
from prompt_store import digest_bytes
from prompt_store.signing_keys import sign_bundle
from tests.prompt_store.keys import private_key, write_keys
from tests.service.fakes import colour_bundle

DATA = colour_bundle(seed=1)
SIGNATURE = sign_bundle(digest_bytes(DATA), "paint.safetensors", private_key())


def test_the_client_sends_the_signature_beside_a_file_or_the_given_one(serve, store, tmp_path):
    bundle, elsewhere = tmp_path / "paint.safetensors", tmp_path / "signature"
    bundle.write_bytes(DATA)
    elsewhere.write_bytes(SIGNATURE)

    async def upload():
        settings = {"require_signature": [write_keys(tmp_path)[1]]}
        async with (
            serve(**settings) as http,
            caspl.AsyncClient("http://localhost", transport=http._transport) as client,
        ):
            for unsigned in (bundle, DATA):
                with pytest.raises(AccessError) as caught:
                    await client.publish(unsigned)
                assert caught.value.code == "signature_required"
            for signature in (SIGNATURE, elsewhere, str(elsewhere)):
                assert (await client.publish(DATA, signature=signature)).version == 2
            bundle.with_name("paint.safetensors.sig").write_bytes(SIGNATURE)
            assert (await client.publish(bundle, activate=True)).is_live

    asyncio.run(upload())
    assert store.signatures(digest_bytes(DATA)) == [SIGNATURE]
