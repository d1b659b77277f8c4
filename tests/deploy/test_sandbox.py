"""The image's command on a read-only root, offline, as a user without a name.

It runs in the image that `make image` built, otherwise with this machine's Python.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.deploy import sandbox
from tests.deploy.dockerfile import IMAGES

REPORT = os.environ.get("IMAGE_REPORT")
"""Of an image that `make image` built."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(sandbox.WITHIN_S)]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    if reason := sandbox.missing_programs():
        pytest.skip(reason)
    volumes = sandbox.Volumes(tmp_path_factory.mktemp("volumes"))
    if REPORT is None:
        return sandbox.run(sandbox.host_root(), volumes, IMAGES[0], path=str(Path(sys.prefix) / "bin"))
    root = json.loads(Path(REPORT).read_text(encoding="utf-8"))["root"]
    return sandbox.run(sandbox.built_root(root), volumes, IMAGES[0])


def test_the_command_serves_a_domain_to_a_client_with_a_key(facts):
    assert "answer" in facts, facts["log"]
    assert facts["answer"]["results"][0]["predictions"][0]["label"] == "striped donut"
    assert facts["status"] == 0


def test_the_sandbox_has_no_network_and_its_user_no_name_and_no_way_to_write_but_volumes_and_tmp(facts):
    assert facts["interfaces"] == ["lo"]
    assert (facts["user"], facts["group"]) == (sandbox.USER, 0)
    assert facts["writable"] == ["/store", "/tmp"]  # noqa: S108


def test_the_health_check_passes_only_while_the_service_runs(facts):
    assert not facts["is_healthy_before"]
    assert not facts["is_healthy_after"]


def test_the_doctor_finds_no_problem_in_the_sandbox(facts):
    findings = json.loads(facts["doctor"])
    assert {one["name"] for one in findings} >= {"torch", "store"}
    assert [one for one in findings if one["status"] == "problem"] == []
