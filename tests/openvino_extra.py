"""For tests with the extra `openvino`, which a development environment has."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")


def assert_no_usage_statistics(code, home):
    """Check that code which imports openvino gets the telemetry stub and writes no identifier to the home folder."""
    code += "; import openvino; print(openvino.tools.ovc.telemetry.__class__.__module__)"
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=kept | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(home.iterdir()) == [], "an identifier for the statistics"
