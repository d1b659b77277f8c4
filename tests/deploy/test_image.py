"""The files and the configuration of an image that `make image` built."""

import json
import os
import re
import stat
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT
from tests.deploy.dockerfile import IMAGES

REPORT = os.environ.get("IMAGE_REPORT")
COMPILERS = re.compile(r"(c|g|x86_64-linux-gnu-g)?cc(-\d+)?|[gc]\+\+|clang.*|ld|as|make|nvcc|cmake|rustc|cargo|go")
LIMIT_WITHOUT_CUDA_MIB = 1.5e9 / 2**20
PROGRAM_FOLDERS = ("opt/caspl/bin", "usr/local/bin", "usr/bin", "usr/sbin")
OWN_PACKAGES = {"caspl", "prompt_store", "prompted_clip", "service"}

pytestmark = pytest.mark.skipif(REPORT is None, reason="needs an image: `make image` builds one and runs these tests")


@pytest.fixture(scope="module")
def report():
    return json.loads(Path(REPORT).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(report):
    return Path(report["root"])


@pytest.fixture(scope="module")
def packages(root):
    (folder,) = (root / "opt/caspl/lib").glob("python*/site-packages")
    return folder


def versions(packages):
    """Version by name of the installed distributions."""
    found = [path.name.removesuffix(".dist-info").rsplit("-", 1) for path in packages.glob("*.dist-info")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_configuration_is_that_of_the_dockerfile(report):
    config, image = report["config"], IMAGES[0]
    environment = dict(pair.split("=", 1) for pair in config["Env"])

    assert config["User"] == "65532:0"
    assert config["Cmd"] == image.command()
    assert config["WorkingDir"] == "/store"
    assert set(config["Volumes"]) == {"/store", "/weights"}
    assert set(config["ExposedPorts"]) == {"8000/tcp"}
    assert config["Healthcheck"]["Test"] == ["CMD", *image.health_check()]
    assert environment["PATH"].startswith("/opt/caspl/bin:")
    assert environment.items() >= {"HOME": "/tmp", "HF_HOME": "/weights"}.items()  # noqa: S108
    assert not {"TORCH_INDEX", "PIP_INDEX_URL"} & environment.keys()


def test_the_code_is_there_without_training_benchmarks_and_tests(root, packages):
    names = {path.name for path in packages.iterdir()}

    assert names >= OWN_PACKAGES
    assert not names & {"training", "benchmarks", "tests"}
    assert not (root / "src").exists()
    assert [path.name for path in packages.glob("prompted_clip/demo/*.safetensors") if "teacher" in path.name] == []


def test_the_versions_are_the_locked_ones(packages, report):
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", lock, re.MULTILINE))
    installed = versions(packages)
    own_torch = {"torch", "torchvision"} if not any(name.startswith("nvidia-") for name in installed) else set()

    assert installed.keys() - locked.keys() == {"caspl-serve"}
    assert {name for name in installed.keys() & locked.keys() if installed[name] != locked[name]} <= own_torch


def test_there_is_no_compiler_and_no_pip_beside_the_service(root):
    programs = {path.name for folder in PROGRAM_FOLDERS for path in (root / folder).glob("*")}

    assert {"caspl", "python"} <= programs
    assert {name for name in programs if COMPILERS.fullmatch(name)} == set()
    assert not list((root / "opt/caspl/bin").glob("pip*"))


def test_nobody_but_root_can_change_the_code(root):
    for path in (root / "opt/caspl").rglob("*"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022, path


def test_the_code_is_compiled_ahead_because_the_root_is_read_only(packages):
    for package in OWN_PACKAGES:
        sources = list((packages / package).rglob("*.py"))
        assert [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))] == []


@pytest.mark.parametrize("volume", ["store", "weights"])
def test_a_volume_is_empty_and_writable_for_the_group_0(root, volume):
    status = (root / volume).stat()

    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65532, 0, 0o770)
    assert list((root / volume).iterdir()) == []


def test_without_cuda_the_image_is_below_1500_mb(report, packages):
    if list(packages.glob("nvidia")):
        pytest.skip("this image has CUDA")
    assert report["image_mib"] < LIMIT_WITHOUT_CUDA_MIB
