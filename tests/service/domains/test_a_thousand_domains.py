"""A thousand live domains and 64 slots on the device, from the store through start and HTTP to the answers."""

import asyncio

import numpy as np
import pytest

from prompt_store.store import Store
from prompted_clip.model import PromptedClip
from tests.service.fakes import picture
from tests.service.http.routes.test_bank import answer_of, bank_metrics
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

N_DOMAINS, N_SLOTS, N_ASKED, AT_ONCE = 1_000, 64, 600, 24
DOMAINS = [f"domain-{index}" for index in range(N_DOMAINS)]


@pytest.fixture
def model():
    return PromptedClip(tiny_backbone(), bank_slots=N_SLOTS)


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    for index, domain in enumerate(DOMAINS):
        names = tuple(f"{word} of {domain}" for word in ("cat", "dog", "bird")[: 2 + index % 2])
        data = random_bundle(domain, names, image_boost=(1 + index % 3, 2), seed=index)
        store.activate(domain, store.add(domain, data).version)
    return store


async def test_a_thousand_domains_answer_from_64_slots_each_as_if_it_were_alone(serve, model):
    ranks = np.arange(1, N_DOMAINS + 1) ** -0.6
    drawn = np.random.default_rng(0).choice(N_DOMAINS, N_ASKED, p=ranks / ranks.sum())
    asked = [DOMAINS[index] for index in drawn]
    is_free = asyncio.Semaphore(AT_ONCE)
    async with serve(bank_slots=N_SLOTS) as client:

        async def ask(domain):
            async with is_free:
                return answer_of(await client.post(f"/classify/{domain}?top_k=3", content=picture("green")))

        together = await asyncio.gather(*map(ask, asked))
        some = range(0, N_ASKED, 20)
        alone = [await ask(asked[number]) for number in some]
        counts = await bank_metrics(client)
        ready = (await client.get("/readyz")).json()
    assert set(ready["domains"].values()) == {"live"}
    assert len(ready["domains"]) == N_DOMAINS
    for domain, answer in zip(asked, together, strict=True):
        assert all(label.endswith(f" of {domain}") for label, _ in answer)
    assert [together[number] for number in some] == alone
    assert counts["used"] + counts["free"] == N_SLOTS
    assert counts["evictions"] > N_SLOTS
