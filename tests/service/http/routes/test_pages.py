"""The web page and the API documentation."""

import re
from pathlib import Path

import pytest

import service
from service.access.key_file import add_key, read_keys
from service.access.rules import RULES

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

PAGES = ("/", "/docs")
OWN_SCRIPTS = sorted(file.name for file in (Path(service.__file__).parent / "web").glob("*.js"))


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_has_a_strict_policy_and_nothing_inline_or_from_elsewhere(serve, path):
    async with serve() as client:
        page = await client.get(path)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert page.headers["content-type"].startswith("text/html")
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"https?://|<style|<script(?![^>]* src=)|\son\w+=|\sstyle=", page.text)


@pytest.mark.parametrize("path", PAGES)
async def test_the_files_of_a_page_are_served_and_its_links_are_relative(serve, path):
    async with serve() as client:
        page = await client.get(path)
        links = [link for link in re.findall(r'(?:src|href)="([^"]+)"', page.text) if link != "data:,"]
        answers = [await client.get(f"/{link}") for link in links]
    assert links
    assert not any(link.startswith("/") for link in links)
    assert {answer.status_code for answer in answers} == {200}
    for link, answer in zip(links, answers, strict=True):
        kind = {"css": "text/css", "js": "text/javascript"}.get(link.rpartition(".")[2], "text/html")
        assert answer.headers["content-type"].startswith(kind)


async def test_scripts_call_the_service_with_relative_paths_and_never_insert_html(serve):
    async with serve() as client:
        for name in OWN_SCRIPTS:
            script = (await client.get(f"/assets/{name}")).text
            assert not re.search(r"https?://|innerHTML|(?:call|getJson|upload|fetch)\([\"'`]/", script)


@pytest.mark.parametrize("name", ["page.html", "..%2Fpage.html", "%2e%2e", "nowhere.js", "py.typed"])
async def test_no_other_file_is_served(serve, name):
    async with serve() as client:
        answer = await client.get(f"/assets/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_documentation_can_be_switched_off(serve):
    async with serve(api_docs=False) as client:
        answers = [await client.get(path) for path in ("/docs", "/openapi.json", "/")]
    assert [answer.status_code for answer in answers] == [404, 404, 200]


async def test_the_openapi_document_declares_the_key_of_every_route(serve, tmp_path):
    add_key(tmp_path / "keys.json", ["classify"], [])
    async with serve(read_keys(tmp_path / "keys.json")) as client:
        document = (await client.get("/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]["api_key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            scope = RULES[path][method.upper()]
            required = [{"api_key": [] if scope == "any" else [scope]}]
            assert operation["security"] == ([] if scope == "none" else required), (method, path)


async def test_without_keys_the_document_declares_them_optional(serve):
    async with serve() as client:
        document = (await client.get("/openapi.json")).json()
    assert document["paths"]["/domains"]["get"]["security"] == [{}, {"api_key": []}]
