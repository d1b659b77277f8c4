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


CYCLONEDX_PY = """
import json, re, sys
lock = open(sys.argv[sys.argv.index("requirements") + 1]).read()
names = re.findall(r"^([^=\\s#]+)==(\\S+)", lock, re.MULTILINE)
components = [
    {"type": "library", "bom-ref": f"L{n}", "name": name, "version": version} for n, (name, version) in enumerate(names)
]
root = {"type": "application", "bom-ref": "root-component", "name": "caspl-serve"}
bom = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": root}}
print(json.dumps(bom | {"components": components, "dependencies": [{"ref": "root-component"}]}))
"""


@pytest.fixture
def sbom(tmp_path):
    """Run `make sbom`'s script with a cyclonedx-py that lists the packages of the lock file."""

    def run(lock):
        (tmp_path / "cyclonedx_py.py").write_text(CYCLONEDX_PY)
        target = tmp_path / "build" / "sbom.cdx.json"
        done = subprocess.run(
            [sys.executable, "-P", str(ROOT / ".ci/sbom.py"), str(lock), str(target)],
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done, json.loads(target.read_text()) if target.exists() else None

    return run


def test_the_bill_of_materials_has_the_dependencies_of_the_project_and_of_every_package(sbom):
    from cyclonedx.schema import SchemaVersion  # here, since the validator's grammars take seconds to compile
    from cyclonedx.validation.json import JsonStrictValidator

    done, bom = sbom(ROOT / "requirements.lock")

    assert done.returncode == 0, done.stdout
    names = {one["bom-ref"]: plain(one["name"]) for one in bom["components"]}
    graph = {names.get(one["ref"], one["ref"]): {names[ref] for ref in one["dependsOn"]} for one in bom["dependencies"]}
    assert graph.keys() == {*names.values(), "root-component"}
    assert graph["root-component"] == set(extras("serve"))
    assert {"starlette", "pydantic"} <= graph["fastapi"]
    assert graph["numpy"] == set()
    reached, waiting = set(), {"root-component"}
    while waiting:
        reached |= waiting
        waiting = set().union(*(graph[name] for name in waiting)) - reached
    assert reached == graph.keys(), "every package is required by another one or by the project"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is None


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("anyio==4.1 \\\n    --hash=sha256:00\n", "no comment names what requires anyio. Run `make lock`"),
        ("idna==3.1\n    # via anyio\n", "anyio requires packages, but is not in the file"),
    ],
)
def test_a_lock_without_the_graph_is_refused(sbom, tmp_path, lock, reason):
    (tmp_path / "some.lock").write_text(lock)
    done, bom = sbom(tmp_path / "some.lock")

    assert (done.returncode, bom) == (1, None)
    assert reason in done.stdout


def test_extras_constraints_and_several_versions_of_a_package_are_understood(sbom, tmp_path):
    lock = """
httpx==0.28
    # via
    #   -c constraints.txt
    #   caspl-serve (pyproject.toml)
h2==4.1 ; python_full_version < '3.12'
    # via httpx[http2]
h2==4.2 ; python_full_version >= '3.12'
    # via
    #   -c constraints.txt
    #   httpx
"""
    (tmp_path / "some.lock").write_text(lock)
    done, bom = sbom(tmp_path / "some.lock")

    assert done.returncode == 0, done.stdout
    graph = {one["ref"]: one["dependsOn"] for one in bom["dependencies"]}
    assert graph == {"root-component": ["L0"], "L0": ["L1", "L2"], "L1": [], "L2": []}
