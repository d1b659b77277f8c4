"""A real browser and a real server process. Skipped without Chromium: `apt install chromium`."""

import shutil

import pytest

from service.demo.process import running
from tests.browser.pictures import ASSETS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    """Chromium; ends with its module, because Playwright's event loop would be in the way of asyncio's afterwards."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(browser):
    with running(ASSETS, []) as (_, client):
        yield client


@pytest.fixture
def page(browser, server):
    """A new page of the demo service; errors in the browser's console fail the test."""
    with opened(browser, str(server.base_url)) as one:
        yield one


class opened:  # noqa: N801  used as a function
    """A page in a context of its own; on exit, uncaught errors and violations of the content-security policy fail."""

    def __init__(self, browser, url, **options):
        self._context = browser.new_context(**options)
        self._url = url
        self._errors = []

    def __enter__(self):
        page = self._context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.on("console", lambda message: self._note(message))
        page.goto(self._url)
        return page

    def __exit__(self, kind, error, trace):
        self._context.close()
        if kind is None:
            assert not self._errors

    def _note(self, message):
        # The browser logs every response with an error status; tests look at the page's own message.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self._errors.append(message.text)
