"""`caspl evaluate` and `caspl reproduce` from a folder to a report."""

import json

import pytest
from typer.testing import CliRunner

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone
from tests.training.evaluation.tiny_sets import CLASS_NAMES, files_below, write_textures
from training.data.catalog import open_dataset
from training.evaluation.command import evaluate_app
from training.evaluation.one_bundle import measure_bundle
from training.evaluation.predict import Predictor
from training.reproduction.command import reproduce_app
from training.unlabelled import train_images_of

MODEL = ["--backbone", "tiny", "--random-weights", "--device", "cpu"]
QUICK = ["--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "batch_size=4"]
QUICK_BOOST = ["--boost-set", "epochs=1", "--boost-set", "warmup_epochs=0"]
QUICK_BOOST += ["--boost-set", "image_tokens=2", "--boost-set", "text_tokens=2"]


@pytest.fixture
def workplace(tmp_path):
    register_tiny_models()
    return write_textures(tmp_path)


def caspl_reproduce(folder, *extra, methods="coop"):
    options = ["dtd", "--data", folder, "--out", folder / "out", "--teacher", "tiny-teacher", *MODEL, *QUICK_BOOST]
    options += ["--methods", methods, "--seeds", "1,2", "--shots", "2", *(QUICK if methods else []), *extra]
    return CliRunner().invoke(reproduce_app, [str(option) for option in options])


def plain_text(output):
    """What a person reads: without frames and line breaks."""
    return " ".join(output.replace("│", " ").split())


def caspl_evaluate(folder, *extra):
    options = ["--data", "dtd", "--root", folder, "--out", folder / "out", *MODEL, *extra]
    return CliRunner().invoke(evaluate_app, [str(option) for option in options])


@pytest.fixture
def boost_bundle(workplace):
    path = workplace / "boost.safetensors"
    path.write_bytes(random_bundle("dtd", CLASS_NAMES, image_boost=(2, 2), text_boost=(2, 2)))
    return path


def test_reproduce_runs_end_to_end_and_reuses_finished_work(workplace):
    first = caspl_reproduce(workplace, "--json")
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    found = [(row["method"], row["boosted"], row["seed"]) for row in report["rows"]]
    assert found == [
        (method, boosted, seed)
        for boosted in (False, True)
        for method, seed in (("zero-shot", None), ("coop", 1), ("coop", 2))
    ]
    assert report["summaries"][0]["published"]["base"] == 53.24
    assert json.loads((workplace / "out" / "report.json").read_text()) == report
    assert all((workplace / "out" / name).is_file() for name in report["pictures"])
    bundles = sorted(path.name for path in (workplace / "out" / "bundles").iterdir())
    assert [name.rsplit("-", 1)[0] for name in bundles] == [
        "dtd-base-coop-boosted-2-shots-seed-1",
        "dtd-base-coop-boosted-2-shots-seed-2",
        "dtd-base-coop-plain-2-shots-seed-1",
        "dtd-base-coop-plain-2-shots-seed-2",
        "dtd-boost",
    ]

    work = [workplace / "out" / "bundles", workplace / "out" / "rows"]
    before = [files_below(folder) for folder in work]
    again = caspl_reproduce(workplace, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == report
    assert [files_below(folder) for folder in work] == before


def test_reproduce_boosts_on_all_train_images_without_labels_and_with_all_names(workplace):
    assert caspl_reproduce(workplace, methods="").exit_code == 0
    (path,) = (workplace / "out" / "bundles").glob("dtd-boost-*/bundle.safetensors")
    manifest = read_bundle(path.read_bytes()).manifest
    assert [each.name for each in manifest.classes] == list(CLASS_NAMES)
    assert manifest.provenance.metrics["n_images"] == 8
    assert manifest.provenance.recipe["loss_weight"] == 200
    assert manifest.provenance.recipe["teacher_template"] == "{} texture."
    assert caspl_reproduce(workplace, "--boost-set", "loss_weight=1000", methods="").exit_code == 0
    assert len(list((workplace / "out" / "bundles").iterdir())) == 2


def test_the_digest_of_the_training_images_follows_their_contents_and_leaves_damaged_ones_out(workplace):
    before = train_images_of(open_dataset("dtd", workplace))
    assert len(before.files) == 8
    damaged = before.files[0]
    damaged.write_bytes(b"")
    after = train_images_of(open_dataset("dtd", workplace))
    assert (after.unreadable, len(after.files)) == ((damaged,), 7)
    assert after.digest != before.digest


def test_the_terminal_and_the_files_show_the_same_report(workplace):
    result = caspl_reproduce(workplace, methods="")
    markdown = (workplace / "out" / "report.md").read_text()
    assert "## dtd" in markdown
    assert "53.24 / 59.90 / 56.37" in markdown
    assert "zero-shot" in result.stdout


def test_the_terminal_shows_published_and_measured_numbers(workplace, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = caspl_reproduce(workplace).stdout
    assert "mean over eleven data sets: base / new / h, %" in plain_text(output)
    lines = [plain_text(line) for line in output.splitlines()]
    assert next(line for line in lines if line.startswith("dtd zero-shot")).endswith("53.2 / 59.9 / 56.4 -")
    coop = next(line for line in lines if line.startswith("dtd coop"))
    assert coop.endswith("79.4 / 41.2 / 54.2 82.6 / 54.2 / 65.5")
    assert "zero-shot 69.3 / 74.2 / 71.7 -" in lines
    assert "coop 82.7 / 63.2 / 71.7 84.8 / 74.5 / 79.3" in lines

    few_shot = ["--protocol", "few-shot", "--methods", "promptsrc", "--seeds", "1", "--shots", "1", *QUICK]
    lines = [plain_text(line) for line in caspl_evaluate(workplace, *few_shot).stdout.splitlines()]
    assert "promptsrc 72.3 / 75.3 / 78.3 / 80.7 / 82.9 75.9 / 77.9 / 80.5 / 82.2 / 84.5" in lines


def test_the_terminal_shows_no_published_numbers_for_other_data_sets(workplace):
    table = ["path,label,split"]
    table += [f"dtd/images/{name}/{name}_100.jpg,{name},test" for name in CLASS_NAMES]
    (workplace / "own.csv").write_text("\n".join(table))
    options = ["--data", workplace / "own.csv", "--protocol", "base-to-new", "--out", workplace / "own", *MODEL]
    result = CliRunner().invoke(evaluate_app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    assert "zero-shot" in result.stdout
    assert "published" not in result.stdout


def test_quick_gelu_makes_another_backbone(workplace):
    options = ["--protocol", "base-to-new", "--json"]
    plain, quick = (caspl_evaluate(workplace, *options, *extra) for extra in ([], ["--quick-gelu"]))
    first, second = (json.loads(result.stdout)["backbone"]["fingerprint"] for result in (plain, quick))
    assert first != second
    reproduced = caspl_reproduce(workplace, "--quick-gelu", "--json", methods="")
    assert json.loads(reproduced.stdout)["backbone"]["fingerprint"] == second


def test_evaluate_measures_a_protocol_with_and_without_boosting(workplace, boost_bundle):
    options = ["--protocol", "base-to-new", "--methods", "coop", "--seeds", "1", "--shots", "2", *QUICK, "--json"]
    boosted = caspl_evaluate(workplace, *options, "--boost", boost_bundle)
    assert boosted.exit_code == 0, boosted.output
    assert [row["boosted"] for row in json.loads(boosted.stdout)["rows"]] == [True, True]
    both = caspl_evaluate(workplace, *options, "--boost", boost_bundle, "--also-plain")
    assert [row["boosted"] for row in json.loads(both.stdout)["rows"]] == [False, False, True, True]
    plain = caspl_evaluate(workplace, *options)
    assert [row["boosted"] for row in json.loads(plain.stdout)["rows"]] == [False, False]
    assert len(list((workplace / "out" / "bundles").iterdir())) == 2


def test_evaluate_measures_one_bundle(workplace, boost_bundle):
    result = caspl_evaluate(workplace, "--bundle", boost_bundle, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    bundle = read_bundle(boost_bundle.read_bytes())
    assert PromptedClip(tiny_backbone()).load_stack(bundle).class_names == tuple(c["name"] for c in content["classes"])
    assert content["digest"] == bundle.digest
    assert sum(map(sum, content["confusion_KK"])) == content["n_images"] == 4
    assert (workplace / "out" / "report.md").read_text().startswith("# dtd on dtd, test")


def test_evaluate_measures_the_plain_backbone_on_a_folder(workplace, tmp_path):
    folder = workplace / "dtd" / "images"
    (folder / "grid" / "notes.txt").write_text("no image")
    (folder / "grid" / "cut.jpg").write_bytes(b"no image")
    options = ["--data", folder, "--out", tmp_path / "own", "--template", "a drawing of {}.", *MODEL]
    shown, as_json = (
        CliRunner().invoke(evaluate_app, [str(option) for option in [*options, *extra]]) for extra in ([], ["--json"])
    )
    assert shown.exit_code == as_json.exit_code == 0, shown.output
    content = json.loads(as_json.stdout)
    expected = measure_bundle(
        Predictor(tiny_backbone()), None, open_dataset(folder, single_split="test", template="a drawing of {}.")
    )
    assert (content["n_images"], content["accuracy"]) == (12, expected.accuracy)
    assert (content["labels"], content["domain"], content["backbone"]) == ("plain", None, "tiny (random:0)")
    assert "tiny (random:0) on images, test" in plain_text(shown.stdout)
    assert f"{expected.accuracy:.2f} %" in shown.stdout
    assert "4, the data set's" in shown.stdout
    assert content["unreadable"] == [str(folder / "grid" / "cut.jpg")]
    assert "1 file not read: 1 .txt" in shown.stderr.splitlines()
    assert f"skipped unreadable images (1): {folder / 'grid' / 'cut.jpg'}" in shown.stderr.splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "base-to-new", "--bundle", "x"], "cannot be combined with --protocol"),
        (["--protocol", "base-to-new", "--template", "{}."], "cannot be combined with --protocol"),
        (["--bundle", "x", "--template", "{}."], "--template is for the plain backbone"),
        (["--methods", "coop"], "require --protocol"),
        (["--boost", "x"], "require --protocol"),
        (["--data", "eurosat"], "one data set"),
        (["--protocol", "base-to-new", "--seeds", "one"], "'one' is not a comma-separated list"),
        (["--protocol", "base-to-new", "--shots", "0"], "'0' is not a comma-separated list"),
        (["--protocol", "base-to-new", "--methods", "coup"], "unknown method 'coup'"),
        (["--bundle", "x", "--methods", "coop"], "require --protocol"),
        (["--bundle", "x", "--data", "eurosat"], "one data set"),
        (["--protocol", "base-to-new", "--device", "gpu"], "expected auto, cpu, cuda or cuda:<n>, found 'gpu'"),
        (["--protocol", "base-to-new", "--device", "cuda:first"], "found 'cuda:first'"),
    ],
)
def test_wrong_options_are_a_usage_error(workplace, options, message):
    result = caspl_evaluate(workplace, *options)
    assert result.exit_code == 2
    assert message in plain_text(result.output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "dts"], "No data set, folder or table named 'dts'"),
        (["--set", "epochs=0"], "'epochs'"),
        (["--set", "depth=3"], "known keys"),
        (["--boost", "missing.safetensors"], "Cannot read the bundle missing.safetensors"),
        (["--boost", "a", "--boost", "b"], "one for each of dtd"),
    ],
)
def test_a_failed_evaluation_prints_the_reason_and_writes_nothing(workplace, options, message):
    result = caspl_evaluate(workplace, "--protocol", "base-to-new", "--methods", "coop", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (workplace / "out").exists()


# An unknown backbone: any other error was found before a backbone was loaded.
UNLOADABLE = ["--backbone", "ViT-Z-16"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "base-to-new", "--methods", "coup"], "unknown method 'coup'"),
        (["--protocol", "base-to-new", "--methods", "coop", "--set", "depth=3"], "known keys"),
        (["--protocol", "base-to-new", "--data", "dts"], "No data set, folder or table named 'dts'"),
        (["--protocol", "base-to-new", "--boost", "missing.safetensors"], "Cannot read the bundle missing.safetensors"),
        (["--bundle", "missing.safetensors"], "Cannot read the bundle missing.safetensors"),
        (["--bundle", "missing.safetensors", "--split", "val"], "has no val images"),
        (["--split", "val"], "has no val images"),
        (["--template", "a photo"], "must contain {} for the class name"),
        ([], "Unknown backbone 'ViT-Z-16'"),
        (["--protocol", "base-to-new"], "Unknown backbone 'ViT-Z-16'"),
    ],
)
def test_evaluate_validates_its_inputs_before_it_loads_a_backbone(workplace, options, message):
    assert message in plain_text(caspl_evaluate(workplace, *options, *UNLOADABLE).output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "coup"], "unknown method 'coup'"),
        (["--set", "depth=3"], "known keys"),
        (["--boost-set", "loss_weight=0"], "'loss_weight'"),
        (["--root", "nowhere"], "nowhere"),
        (["--device", "gpu"], "found 'gpu'"),
        (["--teacher", "ViT-Z-16"], "Unknown backbone 'ViT-Z-16'"),
    ],
)
def test_reproduce_validates_its_inputs_before_it_loads_backbones(workplace, options, message):
    unloadable = [] if "--teacher" in options else UNLOADABLE
    assert message in plain_text(caspl_reproduce(workplace, *options, *unloadable).output)


def test_both_commands_accept_root(workplace):
    options = ["dtd", "--root", workplace, "--out", workplace / "out", "--teacher", "tiny-teacher", *MODEL]
    result = CliRunner().invoke(reproduce_app, [str(each) for each in [*options, *QUICK_BOOST, "--methods", ""]])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_reproduce_runs_with_the_papers_backbones(tmp_path):
    """Random weights and two images a class: the numbers mean nothing, the way from a folder to the row is whole."""
    folder = write_textures(tmp_path, train=1, test=1)
    options = ["dtd", "--data", folder, "--out", folder / "out", "--backbone", "ViT-B-16", "--teacher", "ViT-L-14"]
    options += ["--random-weights", "--device", "cpu", "--methods", "coop", "--seeds", "1", "--shots", "1"]
    options += ["--set", "epochs=1", "--set", "warmup_epochs=0"]
    options += ["--boost-set", "epochs=1", "--boost-set", "warmup_epochs=0", "--json"]
    result = CliRunner().invoke(reproduce_app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    found = [(row["method"], row["boosted"], row["n_images"]) for row in report["rows"]]
    assert found == [(method, boosted, 4) for boosted in (False, True) for method in ("zero-shot", "coop")]
    assert report["summaries"][0]["published"]["base"] == 53.24
    assert report["backbone"]["arch"] == "ViT-B-16"
    (path,) = (folder / "out" / "bundles").glob("dtd-boost-*/bundle.safetensors")
    bundle = read_bundle(path.read_bytes())
    assert bundle.manifest.provenance.metrics["n_images"] == 4
    assert bundle.tensors["image.boost"].shape == (12, 8, 768)
    assert bundle.tensors["text.boost"].shape == (12, 8, 512)
