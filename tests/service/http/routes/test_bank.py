"""More domains than the bank has slots, through the whole application and the real model on a tiny backbone."""

import asyncio
import re

import pytest

from prompt_store.store import Store
from prompted_clip.model import PromptedClip
from service.settings import Settings
from tests.service.fakes import picture
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

DOMAINS = [f"domain-{letter}" for letter in "abcdefgh"]


@pytest.fixture
def settings():
    return {"bank_slots": 4, "resident_domains": "domain-a, domain-c"}


@pytest.fixture
def model(settings):
    with_bank = Settings(**settings)
    return PromptedClip(tiny_backbone(), bank_slots=with_bank.bank_slots)


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    for seed, domain in enumerate(DOMAINS):
        added = store.add(domain, random_bundle(domain, image_boost=(1 + seed % 3, 2), seed=seed))
        store.activate(domain, added.version)
    return store


def answer_of(response):
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    return [(one["label"], pytest.approx(one["probability"], abs=1e-5)) for one in result["predictions"]]


async def ask(client, domain):
    return await client.post(f"/classify/{domain}?top_k=3", content=picture("green"))


async def bank_metrics(client):
    text = (await client.get("/metrics")).text
    found = re.findall(r'^caspl_bank_(?:slots\{state="(\w+)"\}|(loads|evictions)_total) ([\d.]+)$', text, re.MULTILINE)
    return {state or name: int(float(value)) for state, name, value in found}


async def test_all_domains_answer_and_the_metrics_tell_how_many_came_and_went(serve, settings):
    async with serve(**settings) as client:
        alone = [answer_of(await ask(client, domain)) for domain in DOMAINS]
        for _ in range(3):
            together = await asyncio.gather(*(ask(client, domain) for domain in DOMAINS))
            assert [answer_of(response) for response in together] == alone
        counts = await bank_metrics(client)
    assert {name: counts[name] for name in ("used", "free", "kept")} == {"used": 2, "free": 0, "kept": 2}
    assert counts["loads"] == counts["evictions"] + 4
    assert counts["evictions"] >= 8


async def test_a_resident_domain_stays_with_whatever_version_is_live(serve, settings, model):
    async with serve(**settings) as client:
        context = client.context
        old = context.table.pin("domain-a").stack
        data = random_bundle("domain-a", image_boost=(2, 2), seed=99)
        assert (await client.post("/domains/domain-a/versions?activate=true", content=data)).status_code == 201
        new = context.table.pin("domain-a").stack
        for domain in DOMAINS:
            await ask(client, domain)
        kept = [context.table.pin(domain).stack for domain in ("domain-a", "domain-c")]
    assert [one in model.bank for one in (new, *kept, old)] == [True, True, True, False]
