"""`caspl ablate` from a folder to tables and plots."""

import json

import pytest
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from tests.tiny import register_tiny_models
from tests.training.evaluation.tiny_sets import files_below, write_textures
from training.ablation.command import ablate_app

QUICK = ["--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "batch_size=4"]
QUICK_BOOST = ["--boost-set", "epochs=1", "--boost-set", "warmup_epochs=0"]
SMALL = [
    "--depths",
    "1,2",
    "--tokens",
    "1,2",
    "--default-tokens",
    "2",
    "--budgets",
    "2",
    "--seeds",
    "1",
    "--shots",
    "2",
]


@pytest.fixture
def workplace(tmp_path):
    register_tiny_models()
    return write_textures(tmp_path)


def caspl_ablate(folder, *extra):
    options = ["--data", "dtd", "--root", folder, "--out", folder / "out", "--backbone", "tiny", "--random-weights"]
    options += ["--teacher", "tiny-teacher", "--device", "cpu", *SMALL, *QUICK, *QUICK_BOOST, *extra]
    return CliRunner().invoke(ablate_app, [str(option) for option in options])


def plain_text(output):
    return " ".join(output.replace("│", " ").split())


def test_it_measures_every_setting_once_writes_tables_and_plots_and_resumes(workplace, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    first = caspl_ablate(workplace, "--json")
    assert first.exit_code == 0, first.output
    content = json.loads(first.stdout)
    settings = content["settings"]
    assert len(settings) == 4 + 8 - 1 + 1  # depth, tokens with a shared cell, one budget alone
    assert all(0 <= each["h"]["mean"] <= 100 for each in settings)
    assert len([each for each in settings if each["learnable"]]) == 4
    assert {row["method"] for row in content["rows"]} == {"promptsrc", "zero-shot"}
    assert len(content["findings"]) == 4
    assert json.loads((workplace / "out" / "ablation.json").read_text()) == content
    text = (workplace / "out" / "ablation.md").read_text()
    for line in ("H by depth of phase 1", "| 2 boosting, learnable |", "| 2 | 1 boosting + 1 adapting |", "83.51"):
        assert line in text
    assert set(content["pictures"]) == {"ablation-depth.png", "ablation-tokens.png", "ablation-budget.png"}
    assert all((workplace / "out" / name).stat().st_size > 1000 for name in content["pictures"])

    work = [workplace / "out" / "bundles", workplace / "out" / "rows"]
    before = [files_below(folder) for folder in work]
    again = caspl_ablate(workplace)
    assert again.exit_code == 0, again.output
    assert [files_below(folder) for folder in work] == before
    assert "frozen boosting prompts are always better" in plain_text(again.stdout)
    assert "setting 12/12" in again.stderr


def test_each_boosting_setting_is_trained_once_with_its_depth_and_number_of_prompts(workplace):
    assert caspl_ablate(workplace, "--studies", "depth,budget").exit_code == 0
    shapes = sorted(
        read_bundle(path.read_bytes()).tensors["image.boost"].shape[:2]
        for path in (workplace / "out" / "bundles").glob("dtd-boost-*/bundle.safetensors")
    )
    assert shapes == [(1, 2), (2, 1), (2, 2)]


def test_learnable_boosting_prompts_change_in_phase_2_and_frozen_ones_do_not(workplace):
    assert caspl_ablate(workplace, "--studies", "tokens", "--tokens", "2").exit_code == 0
    folders = (workplace / "out" / "bundles").glob("*/bundle.safetensors")
    bundles = {path.parent.name: read_bundle(path.read_bytes()) for path in folders}
    (start,) = (bundle for name, bundle in bundles.items() if name.startswith("dtd-boost-"))
    same = {
        bundle.manifest.provenance.recipe["boosting"]: bool(
            (bundle.tensors["image.boost"] == start.tensors["image.boost"]).all()
        )
        for name, bundle in bundles.items()
        if not name.startswith("dtd-boost-")
    }
    assert same == {"frozen": True, "learnable": False}


def test_a_dry_run_lists_the_runs_with_an_estimate_and_trains_nothing(workplace):
    result = caspl_ablate(workplace, "--dry-run", "--images-per-second", "10", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (len(plan["settings"]), plan["adapting_runs"]) == (12, 12)
    assert plan["boosting_runs"] == sum(each["boosting_runs"] for each in plan["settings"]) == 3
    assert plan["seconds"] == pytest.approx(plan["n_images"] / 10)
    # three boosting runs on 8 images, twelve trainings on 4 images of base classes, tests on 4 images
    assert plan["n_images"] == 3 * 8 + 12 * 4 + (12 + 3) * 4
    assert not (workplace / "out").exists()

    shown = caspl_ablate(workplace, "--dry-run", "--studies", "budget")
    assert shown.exit_code == 0, shown.output
    assert "1 boosting runs and 2 adapting runs" in plain_text(shown.stdout)
    assert "timed steps" in plain_text(shown.stdout)
    assert not (workplace / "out").exists()


UNLOADABLE = ["--backbone", "ViT-Z-16"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--studies", "width"], 2, "expected some of depth, tokens, budget, found 'width'"),
        (["--studies", ""], 2, "expected some of depth, tokens, budget"),
        (["--method", "coop"], 2, "expected one of ivlp, maple, promptsrc, found 'coop'"),
        (["--budgets", "3"], 1, "3 is odd"),
        (["--images-per-second", "3"], 2, "--images-per-second requires --dry-run"),
        (["--tokens", "x"], 2, "is not a comma-separated list"),
        (["--set", "depth=3"], 1, "known keys"),
        (["--boost-set", "loss_weight=0"], 1, "'loss_weight'"),
        (["--data", "dts"], 1, "No data set, folder or table named 'dts'"),
        ([], 1, "Unknown backbone 'ViT-Z-16'"),
    ],
)
def test_it_validates_its_inputs_before_it_loads_a_backbone(workplace, options, code, message):
    result = caspl_ablate(workplace, *options, *UNLOADABLE)
    assert result.exit_code == code
    assert message in plain_text(result.output)
    assert not (workplace / "out").exists()


def test_a_depth_beyond_the_tower_is_an_error(workplace):
    result = caspl_ablate(workplace, "--depths", "1,9")
    assert result.exit_code == 1
    assert "A depth of 9 exceeds the 3 layers of tiny's image tower; use depths from 1 to 3" in plain_text(
        result.output
    )
