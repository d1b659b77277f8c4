import pytest

from tests.service.fakes import colour_bundle

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


async def test_a_domain_shows_since_when_its_version_is_live(serve, store):
    store.add("draft", colour_bundle("draft"))
    store.add("paint", colour_bundle(seed=1))

    def recorded():
        return next(entry.at for entry in reversed(store.history("paint")) if entry.action in {"activate", "rollback"})

    async def shown(client, domain="paint"):
        return (await client.get(f"/domains/{domain}")).json()["live_since"]

    async with serve() as client:
        assert await shown(client, "draft") is None
        assert await shown(client) == recorded()
        await client.put("/domains/paint/live", json={"version": 2})
        assert await shown(client) == recorded()
        await client.post("/domains/paint/rollback")
        assert await shown(client) == recorded()
        store.retire("paint", 2)
    async with serve() as client:
        assert await shown(client) == recorded() != store.history("paint")[-1].at
