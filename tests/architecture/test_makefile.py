"""The Makefile where something is missing on the machine."""

import os
import shutil
import subprocess

from tests.architecture.repository import ROOT

PYTHON_WITHOUT_ENSUREPIP = """#!/bin/bash
[[ $1 == -m ]] || exit 0
mkdir -p "$3/bin"
touch "$3/bin/python"
echo "ensurepip is not available"
exit 1
"""


def test_an_environment_that_was_made_half_way_is_not_taken_for_one_the_next_time(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON_WITHOUT_ENSUREPIP)
    python.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    for _ in range(2):
        made = subprocess.run(
            ["make", f"PYTHON={python}", ".venv/bin/python"],
            cwd=tmp_path,
            env=inherited,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert made.returncode == 2, made.stdout + made.stderr
        assert "ensurepip is not available" in made.stdout
        assert not (tmp_path / ".venv").exists()
