"""Registries: one whose answers a test may change, and Debian's `docker-registry` as a process."""

import base64
import json
import shutil
import socket
import subprocess
from contextlib import contextmanager

import httpx
import pytest

from prompt_store import digest_bytes, read_bundle
from prompt_store.remotes.artifact import make_artifact
from prompt_store.remotes.modelpack import MANIFEST_TYPE, write_manifest
from tests.prompt_store.remotes.opening import opened
from tests.service.processes import eventually

USER, PASSWORD = "carol", "open sesame"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
HTPASSWD = "carol:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
"""bcrypt of the password."""


class OneArtifact:
    """The answers of a registry that has one artifact: `caspl/flowers:1`."""

    def __init__(self, data, signatures=()):
        self.artifact, _ = make_artifact(data, signatures)
        self.manifest, self.blobs = write_manifest(self.artifact, read_bundle(data))
        self.manifest_type = MANIFEST_TYPE
        self.changed = {}

    @property
    def digest(self):
        return digest_bytes(self.manifest)

    def rewrite(self, change):
        """Change the manifest as JSON."""
        fields = json.loads(self.manifest)
        change(fields)
        self.manifest = json.dumps(fields).encode()

    def __call__(self, request):
        if request.path in self.changed:
            return self.changed[request.path](request)
        *_, kind, reference = request.path.split("/")
        if not request.path.startswith("/v2/caspl/flowers/"):
            return 404, {}, b""
        if kind == "manifests" and reference in {"1", self.digest}:
            return 200, {"Content-Type": self.manifest_type, "Docker-Content-Digest": self.digest}, self.manifest
        if kind == "blobs" and reference in self.blobs:
            return 200, {}, self.blobs[reference]
        return 404, {}, b""


class Uploads:
    """A registry that accepts pushes; `place` is where it leads uploads to."""

    def __init__(self, place=""):
        self.stored = {}
        self.place = place
        self.is_guarded = False

    def __call__(self, request):
        if self.is_guarded and request.headers.get("authorization") != BASIC:
            return 401, {"WWW-Authenticate": "Basic realm=x"}, b""
        name = request.query.get("digest") or request.path.rpartition("/")[2]
        if request.method == "HEAD":
            return (200 if name in self.stored else 404), {}, b""
        if request.method == "POST":
            return 202, {"Location": f"{self.place}/v2/caspl/flowers/blobs/uploads/7?state=abc"}, b""
        self.stored[name] = request.body
        return 201, {}, b""


def pull(web, suffix=":1"):
    return opened(f"oci://{web.host}/caspl/flowers{suffix}").pull()


def push(web, answers, suffix=":1"):
    return opened(f"oci://{web.host}/caspl/flowers{suffix}").push(answers.artifact)


def refusal(kind, web, suffix=":1"):
    """The error of a pull."""
    with pytest.raises(kind) as refused:
        pull(web, suffix)
    assert str(refused.value).isprintable()
    return refused.value


def docker_registry():
    """The path of the registry's program; skips the test without it."""
    found = shutil.which("docker-registry") or shutil.which("registry")
    if found is None:
        pytest.skip("needs a registry: apt-get install docker-registry")
    return found


@contextmanager
def running_registry(folder, *, with_password=False):
    """A registry process with its storage in a folder: its address, host and port."""
    program = docker_registry()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": host},
    }
    if with_password:
        (folder / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    (folder / "registry.json").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(folder / "registry.json")], stdout=log, stderr=log)
    try:
        eventually(lambda: is_listening(host) or process.poll() is not None)
        assert process.poll() is None, (folder / "registry.log").read_text()
        yield host
    finally:
        process.kill()
        process.wait()


def is_listening(host):
    try:
        return httpx.get(f"http://{host}/v2/", trust_env=False).status_code in {200, 401}
    except httpx.TransportError:
        return False
