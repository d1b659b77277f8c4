"""The nginx configuration of docs/reverse-proxy.md, with a real nginx in front of the demo service."""

import re
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from service.access.key_file import add_key
from service.demo.files import ASSETS
from service.demo.process import free_port, running
from tests.architecture.repository import ROOT

pytestmark = pytest.mark.slow  # a server process behind nginx

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
PAGE = (ROOT / "docs" / "reverse-proxy.md").read_text(encoding="utf-8")
PICTURE = ASSETS / "images" / "satellite" / "striped-donut-1.jpg"
MAIN = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/bodies; proxy_temp_path {folder}/responses;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {documented}
}}
"""
"""A minimal nginx.conf around the documented file of conf.d."""


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """A client of nginx, which forwards to a demo service that requires keys; and a key."""
    if NGINX is None:
        pytest.skip("needs nginx: apt install nginx-light")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    key = add_key(folder / "keys.json", ["classify"], [])
    block = re.search(r"^```nginx\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    with running(ASSETS, ["--keys-file", str(folder / "keys.json")]) as (_, service):
        documented = block.replace("listen 80;", f"listen 127.0.0.1:{port};")
        documented = documented.replace("127.0.0.1:8000", f"127.0.0.1:{service.base_url.port}")
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, documented=documented))
        process = subprocess.Popen([NGINX, "-p", str(folder), "-c", "nginx.conf"])
        try:
            wait_for_port(process, port)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                yield client, key
        finally:
            process.terminate()
            process.wait()


def wait_for_port(process, port):
    """Wait until nginx accepts connections."""
    for _ in range(600):
        assert process.poll() is None, "nginx does not accept the configuration"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("nginx does not accept connections")


def classify(client, headers):
    return client.post(
        "/classify/satellite", content=PICTURE.read_bytes(), headers={"Content-Type": "image/jpeg"} | headers
    )


def test_a_request_with_a_key_is_answered_through_the_proxy(proxied):
    client, key = proxied

    answer = classify(client, {"Authorization": f"Bearer {key}"})

    assert answer.status_code == 200, answer.text
    assert answer.headers["server"].startswith("nginx")
    assert answer.json()["results"][0]["predictions"][0]["label"] == "striped donut"


def test_a_request_without_a_key_is_refused_although_the_proxy_is_local(proxied):
    client, _ = proxied

    assert classify(client, {}).json()["code"] == "unauthorized"


def test_a_body_above_the_largest_bundle_stops_at_the_proxy(proxied):
    client, key = proxied
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"}

    answer = client.post("/domains/satellite/versions", content=bytes(65 * 2**20), headers=headers)

    assert answer.status_code == 413
    assert "nginx" in answer.text


def test_the_web_page_and_its_files_load_through_the_proxy(proxied):
    client, _ = proxied

    page = client.get("/")
    files = re.findall(r'(?:src|href)="((?:assets/|\./assets/|/assets/)[^"]+)"', page.text)

    assert page.status_code == 200
    assert files
    assert [name for name in files if client.get(f"/{name.lstrip('./')}").status_code != 200] == []
