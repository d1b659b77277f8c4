"""The container images, as far as their Dockerfiles show; test_image.py examines an image that was built."""

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
import typer

from service.cli import serve_app
from service.settings import Settings
from tests.architecture.repository import ROOT
from tests.deploy.dockerfile import IMAGES

KNOWN = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

pytestmark = pytest.mark.parametrize("image", IMAGES, ids=lambda image: str(image.path))


def locked(text):
    """Names of the packages in a lock file."""
    return set(re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE))


def entries(text):
    """The packages of a lock file, each with its hashes."""
    return re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]


def plain(requirement):
    """The package that a requirement names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; (]", requirement, maxsplit=1)[0]).lower()


def required(package):
    """The packages that an installed package requires, extras left out."""
    try:
        return {plain(one) for one in requires(package) or [] if "extra ==" not in one}
    except PackageNotFoundError:
        return set()


def test_a_dockerfile_holds_known_instructions_only(image):
    assert {name for name, _ in image.instructions} <= KNOWN


def test_every_path_that_an_image_copies_exists_and_is_not_ignored(image):
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert [source for source in image.copied_sources() if not (ROOT / source).exists()] == []
    assert [source for source in image.copied_sources() if f"!{source}" not in rules] == []


def test_an_image_has_no_code_that_trains_or_measures(image):
    packages = {source for source in image.copied_sources() if (ROOT / source).is_dir()}

    assert packages == {"caspl", "prompt_store", "prompted_clip", "service"}


def test_an_image_copies_from_stages_that_exist(image):
    used = {word.removeprefix("--from=") for rest in image.all("COPY") for word in rest.split() if "--from=" in word}

    assert used <= image.stages()


def test_every_package_is_installed_from_the_lock_with_its_hash(image):
    installs = [part for rest in image.all("RUN") for part in rest.split("&&") if " install " in part and "pip" in part]

    assert installs
    for one in installs:
        assert "--no-deps" in one
        has_hashes = "--require-hashes" in one
        is_own_code = one.rstrip().endswith((" .", "/dist/*.whl"))
        is_other_torch = "TORCH_INDEX" in one
        assert has_hashes or is_own_code or is_other_torch, one


def test_the_lock_without_torch_lacks_nothing_that_another_package_requires(image):
    program = ["awk", image.lock_filter(), str(ROOT / "requirements.lock")]
    rest = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    kept, dropped = locked(rest), locked(LOCK) - locked(rest)

    assert {"torch", "torchvision"} <= dropped
    assert {plain(one) for one in EXTRAS["serve"]} - {"caspl-serve", "torch"} <= kept
    assert {
        package: found for package in kept if (found := required(package) & (dropped - {"torch", "torchvision"}))
    } == {}
    assert entries(rest) == [entry for entry in entries(LOCK) if entry.split("==")[0] in kept]


def test_an_image_runs_a_command_line_that_parses(image):
    program, command, *arguments = image.command()
    context = typer.main.get_command(serve_app).make_context("serve", arguments)

    assert (program, command) == ("caspl", "serve")
    assert context.params["host"] == "0.0.0.0"  # noqa: S104
    assert str(context.params["keys_file"]) == "/run/secrets/caspl/keys.json"
    assert str(context.params["store"]) == "/store"


def test_an_image_exposes_and_probes_the_port_it_listens_on(image):
    port = str(Settings.model_fields["port"].default)
    probe = image.health_check()

    assert image.only("EXPOSE") == port
    assert f"http://127.0.0.1:{port}/readyz" in probe[-1]
    compile(probe[-1], "probe", "exec")


def test_an_image_runs_as_any_unprivileged_user_in_the_group_0(image):
    assert image.only("USER") == "65532:0"
    assert set(image.volumes()) == {"/store", "/weights"}
    assert any("install -d -o 65532 -g 0 -m 0770 /store /weights" in rest for rest in image.all("RUN"))


def test_an_image_writes_nowhere_but_to_its_volumes_and_tmp(image):
    environment = image.environment()

    assert environment["HOME"] == "/tmp"  # noqa: S108
    assert environment["HF_HOME"] == "/weights"
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert image.only("WORKDIR") == "/store"
