"""The lock files, and `make audit` with and without an advisory database."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

from tests.architecture.repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = {"requirements.lock": ["serve"], "requirements-dev.lock": ["dev", "gpu-decode", "supply-chain"]}
PIP_AUDIT = """
import json, sys
answers = json.loads({answers!r})
answer = answers[sys.argv[sys.argv.index("--vulnerability-service") + 1]]
if answer is None:
    sys.exit("ConnectionError: the database is unreachable")
print(json.dumps({{"dependencies": answer}}))
"""
SKIPPED = {"name": "torch", "skip_reason": "not found"}
CLEAN = {"name": "h11", "version": "0.16", "vulns": []}
VULNERABLE = {"name": "h11", "version": "0.15", "vulns": [{"id": "CVE-2025-43859", "fix_versions": ["0.16"]}]}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text):
    return {plain(name): version for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)}


def extras(*names):
    """The packages of extras, and of the extras that these contain."""
    for requirement in [
        *PROJECT["dependencies"],
        *(one for name in names for one in PROJECT["optional-dependencies"][name]),
    ]:
        name = plain(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0])
        if name == "caspl-serve":
            yield from extras(*re.search(r"\[(.+)\]", requirement)[1].split(","))
        else:
            yield name


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_the_packages_of_its_extras_in_the_versions_of_the_constraints(lock):
    locked = pins((ROOT / lock).read_text(encoding="utf-8"))
    constraints = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))

    assert set(extras(*LOCKS[lock])) - set(locked) == set(), "run `make lock`"
    differing = {name: version for name, version in locked.items() if constraints.get(name, version) != version}
    assert differing == {}, "run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_a_hash(lock):
    text = (ROOT / lock).read_text(encoding="utf-8")
    requirements = [one for one in re.split(r"\n(?=[A-Za-z0-9])", text) if "==" in one]

    assert len(requirements) > 50
    assert [one for one in requirements if not re.search(r"--hash=sha256:[0-9a-f]{64}", one)] == []


@pytest.fixture
def audit(tmp_path):
    """Run `make audit`'s script with a pip-audit that answers as given for each database."""

    def run(**answers):
        (tmp_path / "pip_audit.py").write_text(PIP_AUDIT.format(answers=json.dumps(answers)))
        done = subprocess.run(
            [sys.executable, "-P", str(ROOT / ".ci/audit.py"), "requirements.lock"],
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    return run


def test_an_audit_without_findings_succeeds(audit):
    assert audit(pypi=[CLEAN]) == (0, "1 packages audited (pypi), 0 known vulnerabilities, 0 not audited.\n")


def test_a_vulnerability_fails_the_audit_and_is_named(audit):
    code, text = audit(pypi=[CLEAN, VULNERABLE])

    assert code == 1
    assert "h11 0.15: CVE-2025-43859, fixed in 0.16" in text


def test_a_package_that_was_not_audited_fails_the_audit(audit):
    code, text = audit(pypi=[CLEAN, SKIPPED])

    assert code == 1
    assert "torch: not audited: not found" in text


def test_the_second_database_is_used_if_the_first_one_does_not_answer(audit):
    assert audit(pypi=None, osv=[CLEAN])[0] == 0
    assert audit(pypi=[SKIPPED], osv=[VULNERABLE])[0] == 1


def test_an_audit_without_a_database_fails_with_the_reasons(audit):
    code, text = audit(pypi=[SKIPPED, SKIPPED], osv=None)

    assert code == 3
    assert text.startswith("Nothing was audited: no advisory database gave an answer.")
    assert "osv: ConnectionError: the database is unreachable" in text
