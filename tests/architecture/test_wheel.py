"""The wheel, built and installed beside the dependencies but away from the checkout: its content, and a server in a
folder whose Python files nobody must import.
"""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from service.demo.process import free_port, stop, wait_until_ready
from tests.architecture.repository import ROOT, repository_files

OFFLINE = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
HOSTILE_FILES = ("service/__init__.py", "msgspec.py", "caspl/__init__.py", "uvicorn.py")
MAX_MIB = 8


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the repository's own files without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in repository_files():
        if path.parts[0] not in {"tests", "docs"}:
            (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / "source" / path)
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(*build, folder / "source", env=os.environ | OFFLINE, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel):
    """The command `caspl` of an environment with the wheel and all dependencies, but without the checkout."""
    environment = wheel.parent / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--target", packages)
    run(*install, wheel, env=os.environ | OFFLINE, cwd=wheel.parent)
    return packages / "bin" / "caspl"


def test_the_wheel_holds_neither_benchmarks_nor_tests_nor_the_teacher(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names if ".dist-info/" not in name}

    assert folders == {"caspl", "prompt_store", "prompted_clip", "service", "training"}
    assert [name for name in names if name.endswith("student.safetensors")]
    assert not [name for name in names if name.endswith("teacher.safetensors")]
    assert wheel.stat().st_size < MAX_MIB * 2**20


def test_the_installed_command_lists_its_commands_without_bench(command, tmp_path):
    shown = run(command, "--help", cwd=tmp_path)

    assert "serve" in shown
    assert "bench" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("web_workers", [0, 1])
def test_the_installed_server_imports_nothing_from_the_folder_it_starts_in(command, tmp_path, web_workers):
    hostile, marker, log, port = tmp_path / "hostile", tmp_path / "marker", tmp_path / "log", free_port()
    for name in HOSTILE_FILES:
        (hostile / name).parent.mkdir(parents=True, exist_ok=True)
        (hostile / name).write_text(f"open({str(marker)!r}, 'a').write(__name__)\nraise SystemExit('imported')\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CASPL_", "PYTHON"))}
    options = ("serve", "--demo", "--port", str(port), "--web-workers", str(web_workers))
    with log.open("wb") as file:
        process = subprocess.Popen([command, *options], cwd=hostile, env=environment, stdout=file, stderr=file)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_until_ready(process, client, log)
            assert client.get("/readyz").status_code == 200
        stop(process)
    finally:
        process.kill()
        process.wait()
    assert not marker.exists()
