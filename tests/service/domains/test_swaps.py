"""A thousand activations under traffic: nobody is refused, nobody gets a mixture."""

import asyncio
import itertools

import pytest

from prompt_store.bundle import read_bundle
from prompt_store.store import Store
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio

N_ACTIVATIONS = 1_000
N_VERSIONS = 8
N_CLIENTS = 4


def tagged(version):
    """A bundle whose every label carries its version."""
    return colour_bundle("tagged", tuple(f"{colour}-{version}" for colour in ("red", "green", "blue")))


@pytest.mark.slow
@pytest.mark.timeout(170)
@pytest.mark.parametrize("n_kept", [1, N_VERSIONS], ids=["made anew", "kept loaded"])
async def test_no_request_fails_or_mixes_versions_while_a_thousand_activations_run(serve, store, n_kept):
    digest_of = {}
    for version in range(1, N_VERSIONS + 1):
        data = tagged(version)
        assert store.add("tagged", data).version == version
        digest_of[version] = read_bundle(data).digest
    store.activate("tagged", 1)
    answers, is_over = [], False
    async with serve(max_old_stacks=n_kept) as client:

        async def ask_on(colour):
            while not is_over:
                answer = await client.post("/classify/tagged?top_k=3", content=picture(colour))
                answers.append((colour, answer.status_code, answer.json()))

        asking = [asyncio.ensure_future(ask_on(colour)) for colour in ("red", "green", "blue", "red")]
        order = itertools.cycle(range(2, N_VERSIONS + 1))
        for n, version in zip(range(N_ACTIVATIONS), order, strict=False):
            changed = await client.put("/domains/tagged/live", json={"version": version})
            assert changed.status_code == 200, changed.text
            if n % 100 == 0:
                # What was acknowledged is what answers.
                body = (await client.post("/classify/tagged", content=picture())).json()
                assert body["version"] == version
        is_over = True
        await asyncio.gather(*asking)
    assert len(asking) == N_CLIENTS
    assert len(answers) > N_ACTIVATIONS / 4
    assert [status for _, status, _ in answers if status != 200] == []
    for colour, _, body in answers:
        labels = [one["label"] for one in body["results"][0]["predictions"]]
        assert {label.split("-")[1] for label in labels} == {str(body["version"])}
        assert labels[0] == f"{colour}-{body['version']}"
        assert body["digest"] == digest_of[body["version"]]
    assert len({body["version"] for _, _, body in answers}) == N_VERSIONS
    history = store.history("tagged", limit=2 * N_ACTIVATIONS)
    assert len([entry for entry in history if entry.action == "activate"]) == N_ACTIVATIONS + 1
    assert Store.open(store.root).live("tagged") == store.live("tagged")
