"""`caspl upload` with a server in memory, and with the one of `caspl serve --demo` in a process."""

import asyncio
import functools
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import httpx
import pytest
from typer.testing import CliRunner

import caspl
from caspl import upload_command
from caspl.requests import BYTES_PER_PART, Request
from caspl.upload_command import upload_app
from prompt_store import digest_bytes, read_bundle, write_bundle
from prompt_store.signing_keys import sign_bundle
from service.demo.files import ASSETS
from service.demo.process import running
from tests.prompt_store.keys import private_key
from tests.service.fakes import colour_bundle

DATA = colour_bundle(seed=1)
DIGEST = digest_bytes(DATA)


class Server(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A server in memory, which notes its requests with the bytes that are sent."""

    def __init__(self):
        self.seen, self.answers = [], []

    def handle_request(self, request):
        return self.answer(request, b"".join(request.stream))

    async def handle_async_request(self, request):
        return self.answer(request, b"".join([part async for part in request.stream]))

    def answer(self, request, content):
        self.seen.append((request.method, str(request.url), dict(request.headers), content))
        if self.answers:
            return self.answers.pop(0)
        is_live = request.url.params.get("activate") == "true"
        body = {"domain": "paint", "version": 2, "digest": DIGEST, "is_new": True, "is_live": is_live}
        return httpx.Response(201, json=body)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    made = functools.partial(caspl.Client, transport=server)
    monkeypatch.setattr(upload_command, "Client", made)
    return server


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "paint.safetensors"
    path.write_bytes(DATA)
    return path


def run(*arguments, code=0):
    words = [str(word) for word in arguments]
    result = CliRunner().invoke(upload_app, words, env={"CASPL_URL": None, "CASPL_API_KEY": None, "COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def test_a_bundle_is_uploaded_to_the_domain_in_it_and_the_next_commands_are_named(server, bundle):
    result = run(bundle)
    assert result.stdout.splitlines() == [
        f"paint version 2: stored, not live ({DIGEST})",
        "Try it: caspl classify PICTURE --domain paint --version 2",
        f"Make it live: caspl upload {bundle} --activate",
    ]
    ((method, url, headers, content),) = server.seen
    assert (method, url, content) == ("POST", "http://127.0.0.1:8000/domains/paint/versions", DATA)
    assert headers["content-length"] == str(len(DATA))
    assert "caspl-signature" not in headers


def test_domain_address_key_and_activation_are_passed_on(server, bundle):
    result = run(bundle, "--domain", "ink", "--activate", "--url", "https://caspl.example/x", "--key", "pk_1")
    ((_, url, headers, _),) = server.seen
    assert url == "https://caspl.example/x/domains/ink/versions?activate=true"
    assert headers["authorization"] == "Bearer pk_1"
    assert result.stdout == f"paint version 2: stored, live ({DIGEST})\n"


def test_the_result_is_one_json_object(server, bundle):
    assert json.loads(run(bundle, "--json").stdout) == {
        "domain": "paint",
        "version": 2,
        "digest": DIGEST,
        "is_live": False,
        "is_new": True,
        "signature": None,
    }


def test_the_signature_beside_the_bundle_or_the_named_one_is_sent_and_shown(server, bundle, tmp_path):
    beside, named = tmp_path / "paint.safetensors.sig", tmp_path / "other"
    beside.write_bytes(b"beside")
    named.write_bytes(b"named")
    assert f"stored, with the signature {beside}, not live" in run(bundle).stdout
    assert json.loads(run(bundle, "--json", "--signature", named).stdout)["signature"] == str(named)
    assert [headers["caspl-signature"] for _, _, headers, _ in server.seen] == ["YmVzaWRl", "bmFtZWQ="]


def test_a_refusal_is_one_line_in_words(server, bundle):
    problem = {
        "title": "Signature required",
        "detail": "Sign it with `caspl bundle sign`.",
        "code": "signature_required",
    }
    server.answers.append(httpx.Response(403, json=problem))
    result = run(bundle, code=1)
    assert (result.stdout, result.stderr) == ("", "error: Signature required: Sign it with `caspl bundle sign`.\n")


def test_a_file_that_is_no_bundle_is_refused_before_anything_is_sent(server, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"\x10\0\0\0\0\0\0\0no bundle at all")
    result = run(file, code=1)
    assert result.stderr == "error: The safetensors header must start with {.\n"
    assert server.seen == []
    run(tmp_path / "missing", code=2)


def test_a_busy_server_gets_the_whole_bundle_again(server, bundle):
    server.answers.append(httpx.Response(503, json={"code": "overloaded"}, headers={"Retry-After": "0"}))
    assert "version 2: stored" in run(bundle, "--quiet").stdout
    assert [content for *_, content in server.seen] == [DATA, DATA]


@pytest.mark.parametrize("kind", [httpx.Client, httpx.AsyncClient])
def test_a_body_reports_its_progress_with_the_length_that_it_has(kind):
    data, sent = os.urandom(3 * BYTES_PER_PART + 5), []
    built = Request("POST", "/x", {"content": data}, on_sent=sent.append).built_by(kind(base_url="http://test"))
    assert built.headers["content-length"] == str(len(data))
    assert "transfer-encoding" not in built.headers
    parts = list(built.stream)
    assert b"".join(parts) == data
    assert sent == [BYTES_PER_PART, 2 * BYTES_PER_PART, 3 * BYTES_PER_PART, len(data)]


def test_an_asynchronous_client_reports_the_progress_of_an_upload(bundle):
    sent, server = [], Server()

    async def publish():
        async with caspl.AsyncClient("http://test", transport=server) as client:
            return await client.publish(bundle, on_sent=sent.append)

    assert asyncio.run(publish()).version == 2
    assert sent[-1] == len(DATA)
    assert server.seen[0][3] == DATA


def demo_bundle(seed):
    """A further version of the demo's domain thermal."""
    bundle = read_bundle((ASSETS / "upload" / "thermal-promptsrc.safetensors").read_bytes())
    scale = bundle.manifest.logit_scale - seed
    return write_bundle(bundle.manifest.model_copy(update={"logit_scale": scale}), dict(bundle.tensors))


def on_terminal(command, env):
    """The output of a command on a terminal, and its exit status."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=env) as process:
        os.close(terminal)
        output, ends_s = b"", time.monotonic() + 60
        while time.monotonic() < ends_s:
            if select.select([controller], [], [], 0.1)[0]:
                try:
                    output += os.read(controller, 65536)
                except OSError:
                    break
        process.kill() if process.poll() is None and time.monotonic() >= ends_s else process.wait()
    os.close(controller)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()), process.returncode


@pytest.mark.slow
def test_signed_bundles_are_uploaded_to_a_server_from_a_terminal_and_from_a_pipe(tmp_path):
    file = tmp_path / "thermal.safetensors"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    with running(ASSETS, []) as (_, client):
        env = kept | {"CASPL_URL": str(client.base_url), "COLUMNS": "160", "no_proxy": "*", "TERM": "xterm"}
        command = [sys.executable, "-P", "-m", "caspl", "upload", str(file)]
        file.write_bytes(demo_bundle(1))
        text, status = on_terminal(command, env)
        assert status == 0, text
        assert "uploading (KiB)" in text
        assert "thermal version 2: stored, not live" in text
        file.write_bytes(demo_bundle(2))
        signature = sign_bundle(digest_bytes(demo_bundle(2)), file.name, private_key())
        file.with_name("thermal.safetensors.sig").write_bytes(signature)
        piped = subprocess.run([*command, "--activate", "--json"], env=env, capture_output=True, text=True, check=True)
        assert json.loads(piped.stdout)["is_live"] is True
        (shown,) = client.get("/domains/thermal/versions/3").json()["signatures"]
        file.write_bytes(demo_bundle(2)[:-1])
        refused = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert len(shown["key"]) == 64
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
