"""The site of docs/: a strict build, a navigation with every page, and nothing from other hosts."""

import http.server
import shutil
import subprocess
import sys
import threading
from functools import partial

import pytest
import yaml

from tests.architecture.repository import ROOT, repository_files

pytest.importorskip("zensical", reason="needs Zensical: pip install -e '.[docs]'")
from tests.browser.conftest import browser  # noqa: F401  a fixture


def pages_in(navigation):
    """The files that a navigation names, at any depth."""
    for entry in navigation:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(target, list):
                yield from pages_in(target)
            else:
                yield target


def test_the_navigation_has_every_page_that_no_index_lists():
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [
        path.relative_to("docs") for path in repository_files() if path.parts[0] == "docs" and path.suffix == ".md"
    ]
    listed = {str(page) for page in pages if page.parts[0] not in {"decisions", "results"}} | {"decisions/README.md"}

    assert sorted(pages_in(configuration["nav"])) == sorted(listed)


def build(folder):
    """Build the site of a folder with docs/ and mkdocs.yml."""
    command = [sys.executable, "-P", "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def project(tmp_path):
    """The configuration, with one page instead of the project's own."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(text.partition("\nnav:")[0])
    (tmp_path / "docs").mkdir()
    return tmp_path


@pytest.mark.parametrize("link", ["nowhere.md", "#no-such-heading"])
def test_the_build_fails_on_a_link_to_nowhere(project, link):
    (project / "docs" / "index.md").write_text(f"# Title\n\n[link]({link})\n")

    run = build(project)

    assert run.returncode != 0
    assert "does not exist" in run.stdout + run.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, served from this machine: its address."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    run = build(folder)
    assert run.returncode == 0, run.stdout + run.stderr
    handler = partial(QuietHandler, directory=folder / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", "concepts/", "tutorial/", "reference/cli/"])
def test_a_page_loads_without_another_host_and_all_its_pictures_are_shown(site, browser, path):  # noqa: F811
    page, requested, failed = browser.new_page(), [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)

    page.goto(f"{site}/{path}", wait_until="networkidle")
    page.evaluate("document.querySelectorAll('img').forEach(one => { one.loading = 'eager' })")
    page.wait_for_function("[...document.images].every(one => one.complete)")
    widths = page.evaluate("[...document.querySelectorAll('article img')].map(one => one.naturalWidth)")
    page.close()

    assert [url for url in requested if not url.startswith((site, "data:"))] == []
    assert failed == []
    assert all(widths)


@pytest.mark.slow
def test_the_search_finds_a_setting(site, browser):  # noqa: F811
    page = browser.new_page()
    page.goto(site, wait_until="networkidle")
    page.keyboard.press("/")
    page.get_by_role("combobox", name="Search").fill("keep_uncertain")
    page.get_by_text("Images of requests on disk").first.wait_for(timeout=30_000)
    page.close()


@pytest.mark.slow
def test_copied_commands_have_no_prompt(site, browser):  # noqa: F811
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{site}/tutorial/", wait_until="networkidle")

    page.locator("article .highlight button").first.click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    copied = page.evaluate("navigator.clipboard.readText()")
    context.close()

    assert copied.splitlines() == ["make demo", ". .venv/bin/activate"]
