"""The compose file and the systemd unit start a service whose options and settings exist."""

import re
import shlex
from pathlib import Path

import yaml

from service.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
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


def test_supervisors_give_the_service_time_to_drain():
    assert seconds(COMPOSE["services"]["caspl"]["stop_grace_period"]) > drain_s()
    (timeout,) = re.findall(r"^TimeoutStopSec=(\d+)", UNIT, re.MULTILINE)
    assert float(timeout) > drain_s()
    assert "Restart=always" in UNIT


def test_the_unit_starts_the_service_with_existing_options():
    (line,) = re.findall(r"^ExecStart=(.*)", UNIT, re.MULTILINE)
    command, subcommand, *options = shlex.split(line)
    assert (Path(command).name, subcommand) == ("caspl", "serve")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert {name.removeprefix("--").replace("-", "_") for name in given} <= set(Settings.model_fields)
