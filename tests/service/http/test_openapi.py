"""The OpenAPI document is the one in `openapi.json`, and its examples run.

After a change of the HTTP API: `python -P -m tests.service.http.test_openapi` writes the file.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from prompt_store.store import Store
from service.app import create_app
from service.demo.files import ASSETS
from service.demo.process import running
from service.http.openapi import SAMPLES, URL, code_samples
from service.settings import Settings
from tests.service.fakes import FakeModel

FROZEN = Path(__file__).with_name("openapi.json")
COMMANDS = {
    "Shell": ["bash", "-c"],
    "Python": [sys.executable, "-c"],
    "JavaScript": ["node", "--input-type=module", "-e"],
}


def document():
    """The OpenAPI document without the release's version."""
    with tempfile.TemporaryDirectory() as folder:
        found = create_app(Settings(), FakeModel(), Store.open(Path(folder) / "store")).openapi()
    found["info"].pop("version")
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_document_is_the_frozen_one():
    assert document() == FROZEN.read_text(encoding="utf-8"), f"run: python -P -m {__name__}"


def test_every_call_has_an_example_and_every_example_a_call():
    calls = {(method.upper(), path) for path, calls in json.loads(document())["paths"].items() for method in calls}
    assert set(SAMPLES) == calls


@pytest.mark.slow
@pytest.mark.parametrize("language", COMMANDS)
def test_the_examples_run(language, tmp_path):
    if not shutil.which(COMMANDS[language][0]):
        pytest.skip(f"needs {COMMANDS[language][0]}: apt install nodejs, version 18 or newer")
    pictures = sorted((ASSETS / "images" / "satellite").iterdir())
    for name in ("photo.jpg", "photo-2.png", "photo-3.jpg"):
        picture = next(one for one in reversed(pictures) if one.suffix == name[-4:])
        pictures.remove(picture)
        shutil.copy(picture, tmp_path / name)
    shutil.copy(next((ASSETS / "upload").iterdir()), tmp_path / "bundle.safetensors")
    with running(ASSETS, []) as (_, client):
        url = str(client.base_url).rstrip("/")
        for (method, path), sample in SAMPLES.items():
            (source,) = [one["source"] for one in code_samples(method, sample) if one["lang"] == language]
            assert URL in source
            done = subprocess.run(
                [*COMMANDS[language], source.replace(URL, url)],
                cwd=tmp_path,
                env=os.environ | {"NO_PROXY": "127.0.0.1"},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, (method, path, source, done.stdout, done.stderr)
            if sample.saved_as:
                assert (tmp_path / sample.saved_as).stat().st_size > 100
            else:
                assert bool(done.stdout.strip()) is sample.has_content, (method, path)


if __name__ == "__main__":
    FROZEN.write_text(document(), encoding="utf-8")
