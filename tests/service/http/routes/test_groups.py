"""Groups of similar examples over HTTP."""

import pytest

from tests.service.fakes import picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


async def add(client, *pictures, field="unlabelled"):
    files = [(field, (f"{number}.png", data)) for number, data in enumerate(pictures)]
    answer = await client.post("/domains/paint/examples", files=files)
    assert answer.status_code == 201, answer.text
    return [one["id"] for one in answer.json()["examples"]]


def shades(name, n):
    """Different files of nearly the same picture."""
    return [picture(name, size=(16 + number, 16)) for number in range(n)]


async def test_similar_unlabelled_examples_are_grouped(serve):
    async with serve() as client:
        red, blue = await add(client, *shades("red", 5)), await add(client, *shades("blue", 3))
        await add(client, picture("red", size=(40, 40)), field="red")
        found = (await client.get("/domains/paint/examples/groups")).json()
    assert found["not_grouped"] == []
    assert sorted(id_ for group in found["groups"] for id_ in group) == sorted(red + blue)
    for group in found["groups"]:
        assert set(group) <= set(red) or set(group) <= set(blue)


async def test_examples_beyond_the_limit_are_listed_without_a_group(serve):
    async with serve() as client:
        ids = await add(client, *shades("red", 4))
        found = (await client.get("/domains/paint/examples/groups?limit=3")).json()
    assert found["groups"] == [[*found["groups"][0]]]
    assert sorted(found["groups"][0]) == ids[:3]
    assert found["not_grouped"] == ids[3:]


async def test_a_domain_without_examples_has_no_group_and_an_unknown_one_is_404(serve):
    async with serve() as client:
        empty = await client.get("/domains/paint/examples/groups")
        unknown = await client.get("/domains/nowhere/examples/groups")
    assert empty.json() == {"domain": "paint", "groups": [], "not_grouped": []}
    assert unknown.status_code == 404
