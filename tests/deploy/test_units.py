"""The compose file and the systemd unit start a service whose options and settings exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from service.cli import serve_app
from service.settings import Settings
from tests.deploy.dockerfile import IMAGES

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
DEMO = yaml.safe_load((DEPLOY / "compose.demo.yaml").read_text(encoding="utf-8"))
UNIT = (DEPLOY / "systemd" / "caspl-serve.service").read_text(encoding="utf-8")
DEFAULTS = Settings()


def seconds(text):
    return float(text.removesuffix("s"))


def drain_s():
    return DEFAULTS.drain_delay_s + DEFAULTS.drain_timeout_s


def test_compose_sets_known_settings_and_mounts_existing_files():
    environment = COMPOSE["services"]["caspl"]["environment"]
    assert {name.removeprefix("CASPL_").lower() for name in environment} <= set(Settings.model_fields)
    for service in COMPOSE["services"].values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("./") and not source.startswith("./secrets/"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("./"):
                assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("compose", [COMPOSE, DEMO])
def test_compose_builds_the_image_and_runs_it_without_privileges(compose):
    service = compose["services"]["caspl"]

    assert (DEPLOY / service["build"]["context"] / "Dockerfile").is_file()
    assert {f"{name}=" for name in service["build"]["args"]} <= set(IMAGES[0].all("ARG"))
    assert service["read_only"]
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108
    assert service["cap_drop"] == ["ALL"]


def test_compose_mounts_the_folder_that_the_image_reads_keys_from():
    targets = [mount.split(":")[1] for mount in COMPOSE["services"]["caspl"]["volumes"]]
    command = IMAGES[0].command()

    assert str(Path(command[command.index("--keys-file") + 1]).parent) in targets
    assert set(IMAGES[0].volumes()) <= set(targets)


def test_the_demo_of_compose_needs_no_key_because_it_listens_on_loopback():
    program, command, *arguments = DEMO["services"]["caspl"]["command"]
    context = typer.main.get_command(serve_app).make_context("serve", arguments)

    assert (program, command) == ("caspl", "serve")
    assert context.params["demo"]
    assert context.params["host"] is None
    assert DEFAULTS.is_loopback
    assert DEMO["services"]["caspl"]["network_mode"] == "host"


def test_supervisors_give_the_service_time_to_drain():
    for compose in (COMPOSE, DEMO):
        assert seconds(compose["services"]["caspl"]["stop_grace_period"]) > drain_s()
    (timeout,) = re.findall(r"^TimeoutStopSec=(\d+)", UNIT, re.MULTILINE)
    assert float(timeout) > drain_s()
    assert "Restart=always" in UNIT


def test_the_unit_starts_the_service_with_existing_options():
    (line,) = re.findall(r"^ExecStart=(.*)", UNIT, re.MULTILINE)
    command, subcommand, *options = shlex.split(line)
    assert (Path(command).name, subcommand) == ("caspl", "serve")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert {name.removeprefix("--").replace("-", "_") for name in given} <= set(Settings.model_fields)
