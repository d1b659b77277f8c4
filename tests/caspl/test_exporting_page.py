"""docs/exporting.md: its programs give the classifier's answers, its pipeline configuration fits the exported model."""

import configparser
import contextlib
import json
import re
import shlex
import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

from caspl import Classifier
from caspl.export_command import export_app
from prompt_store.store import Store
from service.demo.files import ASSETS
from tests.architecture.repository import ROOT
from tests.documentation.test_console_blocks import console_commands

PAGE = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
BUNDLE = ASSETS / "bundles" / "satellite.safetensors"
IMAGE = ASSETS / "images" / "satellite" / "striped-donut-1.jpg"

pytestmark = pytest.mark.slow


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the page's commands write."""
    place = tmp_path_factory.mktemp("exported")
    (place / "service").symlink_to(ROOT / "service")
    store = Store.open(place / "store")
    store.add("satellite", BUNDLE.read_bytes())
    store.activate("satellite", 1)
    with contextlib.chdir(place):
        for command in console_commands(ROOT / "docs" / "exporting.md"):
            if command.startswith("caspl export "):
                done = CliRunner().invoke(export_app, shlex.split(command)[2:])
                assert done.exit_code == 0, f"{command}\n{done.stderr}"
            elif command.startswith("paste "):
                subprocess.run(["bash", "-c", command], check=True)
    return place


@pytest.fixture(scope="module")
def expected():
    """The classifier's probabilities for the page's picture, in class order."""
    (result,) = Classifier("demo-student", bundles=[BUNDLE], device="cpu").classify(IMAGE, top_k=80)
    return np.array([one.probability for one in sorted(result.predictions, key=lambda one: one.class_id)])


@pytest.mark.parametrize(("runtime", "atol"), [("onnxruntime", 1e-5), ("openvino", 1e-2)])  # the latter crops first
def test_a_program_of_the_page_gives_the_classifiers_answer(folder, expected, runtime, atol, monkeypatch, capsys):
    (program,) = [block for block in blocks("python") if f"import {runtime}" in block]
    monkeypatch.chdir(folder)
    names = {}

    exec(program, names)  # noqa: S102  our own documentation

    np.testing.assert_allclose(names["probabilities"][0], expected, rtol=0, atol=atol)
    assert capsys.readouterr().out.startswith("striped donut ")


def test_the_configuration_for_deepstream_fits_the_model(folder):
    parser = configparser.ConfigParser(comment_prefixes="#")
    (text,) = blocks("ini")
    parser.read_string(text)
    keys = parser["property"]
    metadata = json.loads((folder / "deepstream" / "satellite.json").read_text(encoding="utf-8"))

    assert [int(size) for size in keys["infer-dims"].split(";")] == metadata["input"]["shape"][1:]
    assert (keys["net-scale-factor"], metadata["input"]["range"]) == ("1", [0, 255])
    assert metadata["input"]["type"] == "float32"
    assert (folder / "deepstream" / keys["onnx-file"]).is_file()
    labels = (folder / "deepstream" / keys["labelfile-path"]).read_text(encoding="utf-8")
    assert labels == ";".join(metadata["classes"]) + "\n"
    assert list(metadata["outputs"]) == ["probabilities"]
