"""`caspl doctor` as a command, and its checks with prepared machines."""

import json
import socket
import subprocess
import sys

import pytest

from caspl.doctor import installation, machine, serving
from caspl.doctor.finding import Status
from prompt_store.store import Store
from tests.service.fakes import colour_bundle
from tests.service.processes import environment
from tests.service.processes import serving as running

COMMAND = [sys.executable, "-P", "-m", "caspl", "doctor"]
OK, WARNING, PROBLEM = Status


def doctor(folder, *options, **variables):
    env = environment() | {"COLUMNS": "200", "no_proxy": "*"} | variables
    return subprocess.run([*COMMAND, *options], cwd=folder, env=env, capture_output=True, text=True, check=False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def port():
    """A free port."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


@pytest.fixture
def bundles(tmp_path):
    """A store with one live domain."""
    store = Store.open(tmp_path / "store")
    store.activate("paint", store.add("paint", colour_bundle()).version)
    return store


@pytest.mark.slow
def test_every_check_is_a_line_and_a_server_and_its_store_are_found(bundles, tmp_path):
    with running(bundles) as (_, url):
        run = doctor(tmp_path, "--url", url, CASPL_PORT=url.rpartition(":")[2])

    assert run.returncode == 0, run.stdout + run.stderr
    assert "ok      store: store is sound: 1 domains, 1 live\n" in run.stdout
    assert "is used by a running CasPL Serve\n" in run.stdout
    assert f"ok      server: {url} is ready\n" in run.stdout
    names = [line.split()[1].rstrip(":") for line in run.stdout.splitlines() if not line.startswith(" ")]
    assert names == [
        *("Python", "caspl", "extras", "processor", "torch", "settings", "store", "memory", "disk"),
        *("weights", "keys", "port", "server"),
    ]


@pytest.mark.slow
def test_a_problem_is_named_with_its_remedy_and_exits_with_1(tmp_path, port):
    keys = write(tmp_path / "keys.json", '{"keys": []}')
    keys.chmod(0o644)
    (tmp_path / "photos").mkdir()
    variables = {"CASPL_KEYS_FILE": str(keys), "CASPL_PORT": str(port)}
    run = doctor(tmp_path, "--json", "--store", "photos", "--url", f"http://127.0.0.1:{port}", **variables)

    findings = {finding["name"]: finding for finding in json.loads(run.stdout)}
    assert run.returncode == 1
    assert {name for name, one in findings.items() if one["status"] == "problem"} == {"keys", "store", "server"}
    assert findings["keys"]["advice"] == f"chmod 600 {keys}"
    assert all(bool(finding["advice"]) == (finding["status"] != "ok") for finding in findings.values())


@pytest.mark.slow
def test_an_invalid_variable_is_a_problem_and_the_other_checks_run(tmp_path):
    run = doctor(tmp_path, "--json", CASPL_PORT="many")
    findings = {finding["name"]: finding for finding in json.loads(run.stdout)}

    assert run.returncode == 1
    assert findings["settings"]["status"] == "problem"
    assert "port: Input should be a valid integer" in findings["settings"]["detail"]
    assert findings["memory"]["status"] == "ok"


def test_a_damaged_store_is_a_problem_with_the_command_that_repairs_it(bundles):
    (blob,) = (path for path in bundles.root.rglob("*") if path.is_file() and path.stat().st_size > 500)
    blob.chmod(0o644)
    blob.write_bytes(b"?" + blob.read_bytes()[1:])
    found = serving.check_bundle_store(str(bundles.root))

    assert (found.status, found.advice) == (PROBLEM, f"caspl store check --repair --store {bundles.root}")


def test_a_port_of_another_program_is_a_problem():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        assert serving.check_port("127.0.0.1", other.getsockname()[1]).status == PROBLEM


@pytest.mark.parametrize(("flags", "status"), [("fpu avx2 avx512_bf16", OK), ("fpu sse2", WARNING)])
def test_instructions_that_matter_are_listed(tmp_path, monkeypatch, flags, status):
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    found = machine.check_processor(write(tmp_path / "cpuinfo", f"processor\t: 0\nflags\t\t: {flags}\n"))

    assert found.status == status
    assert ("avx512_bf16" in found.detail) == (status == OK)


@pytest.mark.parametrize(
    ("files", "status", "detail"),
    [
        ({}, OK, "8.0 GiB available of 16.0 GiB"),
        ({"memory.max": "max", "memory.current": "5"}, OK, "8.0 GiB available of 16.0 GiB"),
        (
            {"memory.max": str(4 * 2**30), "memory.current": str(3 * 2**30)},
            WARNING,
            "1.0 GiB available of 4.0 GiB (limit of the cgroup)",
        ),
        (
            {"memory/memory.limit_in_bytes": str(6 * 2**30), "memory/memory.usage_in_bytes": "0"},
            OK,
            "6.0 GiB available of 6.0 GiB (limit of the cgroup)",
        ),
    ],
)
def test_memory_is_limited_by_the_cgroup(tmp_path, files, status, detail):
    write(tmp_path / "proc/meminfo", f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n")
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    found = machine.check_memory(tmp_path)

    assert (found.status, found.detail) == (status, detail)


@pytest.mark.parametrize(("n_bytes", "status"), [(2**40, OK), (2**29, WARNING), (2**20, PROBLEM)])
def test_little_space_on_the_disk_of_the_store_is_reported(tmp_path, monkeypatch, n_bytes, status):
    usage = type("Usage", (), {"free": n_bytes})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage if folder == tmp_path else None)

    assert machine.check_disk(tmp_path / "not" / "yet").status == status


def test_a_torch_that_ends_the_process_is_a_problem_and_not_the_end_of_the_command(tmp_path):
    found = installation.check_torch(installation.probe("import os; os.abort()"), tmp_path / "none")

    assert found.status == PROBLEM
    assert "cannot be imported: exit code -6" in found.detail


FACTS = {"torch": "2.9", "cuda": "13.0", "threads": 4, "devices": []}


@pytest.mark.parametrize(
    ("devices", "has_driver", "status"), [([], False, OK), ([], True, PROBLEM), (["H200, 139 GiB"], True, OK)]
)
def test_a_gpu_that_torch_cannot_use_is_a_problem(tmp_path, devices, has_driver, status):
    driver = tmp_path / "version"
    if has_driver:
        write(driver, "NVRM version: 470.1\nGCC\n")
    found = installation.check_torch(installation.Probe(FACTS | {"devices": devices}), driver)

    assert found.status == status
    assert ("470.1" in found.detail) == (status == PROBLEM)


@pytest.mark.parametrize(
    ("pretrained", "status"),
    [(None, OK), ("openai", OK), ("laion2b_s34b_b88k", WARNING), ("gone.safetensors", PROBLEM)],
)
def test_the_configured_weights_are_looked_for_in_the_cache(pretrained, status):
    found = installation.check_weights(installation.Probe({"tags": [["ViT-B-16", "openai"]]}), "ViT-B-16", pretrained)

    assert found.status == status
    assert "ViT-B-16 (openai)" in found.detail or status == PROBLEM


def test_without_the_serve_extra_the_clients_work_and_the_command_is_named(monkeypatch):
    monkeypatch.setattr(installation, "_is_installed", lambda package: package != "torch")
    found = installation.check_extras()

    assert (found.status, 'pip install "caspl-serve[serve]"' in found.advice) == (WARNING, True)
    assert installation.check_torch(installation.Probe(error="No module named 'torch'")).status == WARNING
