"""The Python code blocks of README, docs/python.md and docs/http-api.md run, against the packaged demo."""

import re

import pytest

import caspl
from caspl.errors import CasplError
from service.demo.files import ASSETS
from service.demo.process import running
from tests.architecture.repository import ROOT

GUIDE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
OTHERS = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/http-api.md")]
BLOCKS = [block for page in (GUIDE, *OTHERS) for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]


@pytest.fixture(scope="module")
def server_url():
    with running(ASSETS, []) as (_, client):
        yield str(client.base_url)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_documented_example_runs(block, server_url, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(block.replace("127.0.0.1:8000", server_url.removeprefix("http://")), {})  # noqa: S102  our own documentation

    assert "donut" in capsys.readouterr().out


def test_every_error_is_documented():
    documented = set(re.findall(r"\| `caspl\.errors\.(\w+)` \|", GUIDE))

    assert documented == {kind.__name__ for kind in CasplError.__subclasses__()}
    assert all(issubclass(getattr(caspl.errors, name), caspl.CasplError) for name in documented)
