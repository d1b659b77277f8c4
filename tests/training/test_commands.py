"""Checks of the training commands before they read images, and their lines about weights and mistakes."""

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.tiny import register_tiny_models, tiny_backbone
from training.cli import adapt_app, boost_app
from training.evaluation.command import evaluate_app
from training.recipe import read_recipe
from training.reproduction.command import reproduce_app


@pytest.fixture
def workplace(tmp_path):
    register_tiny_models()
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "pets" / folder).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (40, 40), (90 * index, 60, 30)).save(tmp_path / "pets" / folder / f"{index}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


def run(command, folder, *extra):
    data, domain = ["--data", str(folder / "pets")], ["--domain", "pets", "--out", str(folder / "pets.safetensors")]
    teacher = ["--teacher", "tiny-teacher"]
    apps = {
        "boost": (boost_app, ["--images", data[1], "--classes", str(folder / "classes.txt"), *domain, *teacher]),
        "boost --data": (boost_app, [*data, *domain, *teacher]),
        "adapt": (adapt_app, ["--method", "coop", *data, *domain]),
        "evaluate": (evaluate_app, [*data, "--protocol", "few-shot", "--out", str(folder / "out")]),
        "reproduce": (reproduce_app, [data[1], *teacher, "--out", str(folder / "out")]),
    }
    app, arguments = apps[command]
    return CliRunner().invoke(app, [*arguments, "--device", "cpu", *extra])


def one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize("command", ["boost", "boost --data", "adapt", "evaluate", "reproduce"])
@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (["--backbone", "ViT-B-17", "--pretrained", "openai"], "Unknown backbone 'ViT-B-17'. Did you mean ViT-B-16"),
        (["--backbone", "ViT-B-16"], "needs weights: pass --pretrained (in Python, pretrained=) with a tag (openai"),
        (["--backbone", "ViT-B-16", "--pretrained", "nowhere.pt"], "No weights file at 'nowhere.pt'"),
        (["--backbone", "ViT-B-16", "--pretrained", "opnai"], "Did you mean openai"),
    ],
)
def test_missing_weights_are_noticed_before_an_image_is_read(workplace, monkeypatch, command, weights, says):
    monkeypatch.setattr(Image, "open", lambda *_a, **_k: pytest.fail("read an image"))
    result = run(command, workplace, *weights)
    assert result.exit_code == 1, result.output
    assert says in one_line(result.stderr)
    assert result.stderr.splitlines()[-1].startswith(f"caspl {command.split()[0]}: ")


@pytest.mark.parametrize("command", ["boost", "adapt"])
def test_the_weights_in_use_are_printed_in_one_line(workplace, command):
    save_file(
        {name: tensor.contiguous() for name, tensor in tiny_backbone().clip.state_dict().items()},
        workplace / "tiny.safetensors",
    )
    teacher = tiny_backbone("tiny-teacher").clip.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in teacher.items()}, workplace / "teacher.safetensors")
    options = ["--backbone", "tiny", "--pretrained", str(workplace / "tiny.safetensors")]
    if command == "boost":
        options += ["--teacher-pretrained", str(workplace / "teacher.safetensors")]
    result = run(command, workplace, *options, "--set", "epochs=1", "--set", "warmup_epochs=0")
    lines = [line for line in result.stderr.splitlines() if line.startswith("weights: ")]
    assert len(lines) == (2 if command == "boost" else 1)
    assert lines[0].startswith("weights: tiny (tiny.safetensors), ")
    assert tiny_backbone().fingerprint in lines[0]
    assert "GELU, mean [0.48145466, " in lines[0]


def test_a_mistyped_option_suggests_the_right_one(workplace):
    result = run("adapt", workplace, "--bakcbone", "tiny")
    assert result.exit_code == 2
    assert "--backbone" in result.stderr


def test_a_mistyped_method_suggests_the_right_one(workplace):
    result = run("adapt", workplace, "--method", "promtsrc")
    assert result.exit_code == 2
    assert "unknown method 'promtsrc'. Did you mean promptsrc?" in one_line(result.stderr)
    result = run("evaluate", workplace, "--methods", "coop,mapel")
    assert "unknown method 'mapel'. Did you mean maple?" in one_line(result.stderr)


@pytest.mark.parametrize("method", ["coop", "promptsrc"])
def test_a_recipe_file_with_a_table_per_method_is_read_from_the_methods_table(tmp_path, method):
    (tmp_path / "r.toml").write_text("[coop]\nepochs = 7\n[promptsrc]\nepochs = 7\nimage_tokens = 8\n")
    result = CliRunner().invoke(
        adapt_app, ["--method", method, "--recipe", str(tmp_path / "r.toml"), "--set", "batch_size=3", "--print-recipe"]
    )
    assert result.exit_code == 0, result.output
    assert "epochs = 7" in result.stdout
    assert "batch_size = 3" in result.stdout


@pytest.mark.parametrize(
    ("app", "arguments", "says"),
    [
        (adapt_app, ["--method", "vpt"], "has only the tables coop, promptsrc; expected [vpt]"),
        (boost_app, [], "has only the tables coop, promptsrc; expected keys without a table"),
    ],
)
def test_a_recipe_file_without_the_methods_table_names_its_tables(tmp_path, app, arguments, says):
    (tmp_path / "r.toml").write_text("[coop]\nepochs = 7\n[promptsrc]\nepochs = 7\n")
    result = CliRunner().invoke(app, [*arguments, "--recipe", str(tmp_path / "r.toml"), "--print-recipe"])
    assert result.exit_code == 1
    assert says in one_line(result.stderr)


def test_the_demos_adapting_recipe_is_a_recipe_of_each_of_its_methods():
    from training.adapting.methods import METHODS
    from training.demo.adapt_domains import RECIPES

    for method in ("coop", "cocoop", "maple", "promptsrc"):
        assert read_recipe(METHODS[method].recipe, RECIPES, table=method).batch_size in {8, 32}
