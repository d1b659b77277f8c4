"""Imports: the contracts of pyproject.toml, and the modules that a fresh interpreter loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT


def modules_after(statement):
    """Names of the loaded modules after `statement` in a fresh interpreter."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stderr.splitlines()[-1]))


def test_the_import_contracts_hold():
    command = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_the_service_never_loads_training():
    loaded = modules_after("import service.app")

    assert not {name for name in loaded if name.split(".")[0] in {"training", "matplotlib", "pandas"}}


def test_bundles_are_read_without_torch():
    loaded = modules_after("import prompt_store.bundle, prompt_store.store")

    assert not loaded & {"torch", "PIL", "fastapi", "typer"}


def test_the_command_lines_load_without_torch():
    modules = [
        "caspl.classify_command",
        "caspl.doctor_command",
        "caspl.export_command",
        "caspl.teach_command",
        "prompt_store.cli",
        "service.cli",
        "training.cli",
        "training.fit_command",
        "training.importing.command",
        "training.ablation.command",
        "training.evaluation.command",
        "training.reproduction.command",
    ]

    assert not modules_after(f"import {', '.join(modules)}") & {"torch", "open_clip"}


def test_the_public_package_loads_its_classes_on_first_use():
    loaded = modules_after(
        "import caspl\nassert caspl.__version__\nassert issubclass(caspl.errors.ImageError, caspl.CasplError)"
    )

    assert not loaded & {"torch", "numpy", "httpx", "PIL", "open_clip", "service", "typer"}


def test_the_client_loads_neither_torch_nor_pillow():
    loaded = modules_after("import caspl\ncaspl.Client")

    assert not loaded & {"torch", "PIL", "open_clip", "service"}


def test_the_commands_of_the_container_image_load_without_training():
    loaded = modules_after(
        "import caspl.__main__, caspl.doctor_command, prompt_store.cli, prompt_store.remotes.commands, service.cli"
    )

    assert not {name for name in loaded if name.split(".")[0] in {"training", "benchmarks"}}


def test_a_web_process_loads_no_torch():
    loaded = modules_after("import service.workers.web_process")

    assert not loaded & {"torch", "torchvision", "open_clip", "service.engine.engine"}


@pytest.mark.slow
def test_fits_and_the_demo_need_no_package_that_only_training_installs():
    loaded = modules_after(
        "import training.fit_command, training.data.catalog, training.fit_run, training.demo.labelled"
    )

    assert not loaded & {"accelerate", "matplotlib", "sklearn", "tensorboard", "tomli_w"}


def test_the_help_page_loads_nothing_heavy():
    loaded = modules_after(
        "import caspl.__main__\nsys.argv = ['caspl', '--help']\n"
        "try:\n    caspl.__main__.main()\nexcept SystemExit as end:\n    assert not end.code"
    )

    assert not loaded & {"torch", "open_clip", "fastapi", "uvicorn", "PIL"}
