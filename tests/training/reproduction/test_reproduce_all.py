"""`caspl reproduce --all` on imitations of the eleven data sets and ImageNet's four variants."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from tests.tiny import register_tiny_models
from tests.training.evaluation.tiny_sets import files_below
from tests.training.reproduction.imitations import NAMES, write_all
from training.reproduction.command import reproduce_app
from training.reproduction.tables import TABLES, VARIANTS

MODEL = ["--backbone", "tiny", "--teacher", "tiny-teacher", "--random-weights", "--device", "cpu"]
QUICK = ["--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "batch_size=4", "--methods", "promptsrc"]
QUICK_BOOST = ["--boost-set", "epochs=1", "--boost-set", "warmup_epochs=0"]
ELEVEN = TABLES["base-to-new"].datasets


@pytest.fixture
def root(tmp_path):
    register_tiny_models()
    return write_all(tmp_path / "data")


def caspl_reproduce(*options):
    return CliRunner().invoke(reproduce_app, [str(option) for option in options])


def reproduce_all(root, *extra):
    out = root.parent / "out"
    return caspl_reproduce(
        "--all", "--root", root, "--out", out, *MODEL, *QUICK, *QUICK_BOOST, "--seeds", "1", *extra
    )  # fmt: skip


def plain_text(output):
    return " ".join(output.replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_every_table_on_every_data_set_and_resumes(root):
    first = reproduce_all(root, "--json")
    assert first.exit_code == 0, first.output
    results = json.loads(first.stdout)
    out = root.parent / "out"
    assert json.loads((out / "results.json").read_text()) == results
    assert set(results["data"]) == {*ELEVEN, *VARIANTS}
    found = {(row["protocol"], row["dataset"], row["target"]) for row in results["rows"]}
    assert found == {
        *(("base-to-new", name, name) for name in ELEVEN),
        *(("domain-generalisation", "imagenet", name) for name in ("imagenet", *VARIANTS)),
    }
    assert len(results["rows"]) == len(found) * 4  # zero-shot and PromptSRC, with and without boosting
    for protocol in ("base-to-new", "domain-generalisation"):
        assert (out / protocol / "report.md").is_file()
    assert "in the published split" in first.stderr

    before = [files_below(out / name) for name in ("rows", "bundles")]
    again = reproduce_all(root)
    assert again.exit_code == 0, again.output
    assert [files_below(out / name) for name in ("rows", "bundles")] == before
    assert "rows of the paper agree within 1 points" in plain_text(again.stdout)

    checked = caspl_reproduce("--check", out / "results.json", "--json")
    comparison = json.loads(checked.stdout)
    assert checked.exit_code == 1  # random weights: nothing agrees
    assert comparison["differ"] > 0
    assert comparison["agree"] + comparison["differ"] == 11 * 4 + 4 * 4
    assert "student is tiny" in comparison["notes"][0]
    assert comparison["advice"].startswith("The plain zero-shot rows differ on")


def test_a_dry_run_checks_all_fifteen_and_estimates_each_without_training(root):
    result = reproduce_all(root, "--dry-run", "--images-per-second", "100", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert {each["name"] for each in plan["datasets"]} == {*ELEVEN, *VARIANTS}
    assert all(each["found"] and each["bytes"] > 0 for each in plan["datasets"])
    assert plan["problems"] == []
    assert [each["name"] for each in plan["estimates"]] == list(ELEVEN)
    assert all(each["seconds"] == pytest.approx(each["n_images"] / 100) for each in plan["estimates"])
    dtd = next(each for each in plan["estimates"] if each["name"] == "dtd")
    # boosting 8; PromptSRC plain and boosted on 4 images of base classes; four rows of 4 test images
    assert (dtd["runs"], dtd["n_images"]) == (1 + 2, 8 + 2 * 4 + 4 * 4)
    assert plan["seconds"] == pytest.approx(sum(each["seconds"] for each in plan["estimates"]))
    assert dtd["results_bytes"] > 0
    assert not (root.parent / "out").exists()


def test_a_dry_run_lists_everything_that_is_missing_at_once(root):
    (root / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    (root / "food-101" / "images" / "grid" / "grid_100.jpg").unlink()
    (root / "sun397" / "SUN397" / "grid" / "grid_0.jpg").write_bytes(b"")
    shutil.rmtree(root / "imagenet-adversarial")
    result = reproduce_all(root, "--dry-run", "--backbone", "ViT-Z-16", "--json")
    assert result.exit_code == 1
    plan = json.loads(result.stdout)
    missing = {each["name"] for each in plan["datasets"] if not each["found"]}
    assert missing == {"dtd", "food101", "sun397", "imagenet_a"}
    text = " ".join(plan["problems"])
    for part in ("split_zhou_DescribableTextures.json", "grid_100.jpg", "empty image files (1)", "imagenet-a"):
        assert part in text
    assert plan["problems"][-1].startswith("weights: Unknown backbone 'ViT-Z-16'")
    assert plan["seconds"] is None

    shown = plain_text(reproduce_all(root, "--dry-run", "--backbone", "ViT-Z-16").stdout)
    assert "problem 1 of 5" in shown
    assert "missing or invalid" in shown


def test_a_run_with_missing_data_sets_fails_before_training_unless_skip_missing_is_set(root):
    shutil.rmtree(root / "imagenet")
    for name in ("caltech-101", "oxford_pets", "stanford_cars", "oxford_flowers", "food-101", "fgvc_aircraft"):
        shutil.rmtree(root / name)
    for name in ("sun397", "eurosat"):
        shutil.rmtree(root / name)
    refused = reproduce_all(root)
    assert refused.exit_code == 1
    assert "9 of the data sets cannot be used" in plain_text(refused.stderr)
    assert "--skip-missing" in plain_text(refused.stderr)
    assert not (root.parent / "out").exists()

    options = ["--root", root, "--out", root.parent / "out", *MODEL, *QUICK_BOOST, "--methods", ""]
    done = caspl_reproduce("--all", *options, "--skip-missing", "--json")
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert {row["dataset"] for row in results["rows"]} == {"dtd", "ucf101"}
    assert "skipped imagenet:" in done.stderr


def test_a_single_data_set_writes_a_results_file_too(root):
    out = root.parent / "one"
    done = caspl_reproduce("dtd", "--root", root, "--out", out, *MODEL, *QUICK_BOOST, "--methods", "")
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert [(row["method"], row["boosted"]) for row in results["rows"]] == [("zero-shot", False), ("zero-shot", True)]
    assert list(results["data"]) == ["dtd"]
    assert results["boost_overrides"] == ["epochs=1", "warmup_epochs=0"]


def test_the_results_of_a_csv_data_set_contain_its_name_and_no_path(root):
    lines = ["path,label,split"]
    lines += [f"dtd/images/{name}/{name}_{number}.jpg,{name},{split}"
              for name in NAMES for number, split in ((0, "train"), (1, "train"), (100, "test"))]  # fmt: skip
    (root / "own.csv").write_text("\n".join(lines))
    out = root.parent / "own"
    done = caspl_reproduce(root / "own.csv", "--out", out, *MODEL, *QUICK_BOOST, "--methods", "")
    assert done.exit_code == 0, done.output
    text = (out / "results.json").read_text()
    assert list(json.loads(text)["data"]) == ["own"]
    assert str(root) not in text


def test_a_single_data_set_with_an_empty_image_fails_before_it_trains(root):
    (root / "dtd" / "images" / "grid" / "grid_0.jpg").write_bytes(b"")
    out = root.parent / "one"
    failed = caspl_reproduce("dtd", "--root", root, "--out", out, *MODEL, *QUICK_BOOST, "--methods", "")
    assert failed.exit_code == 1
    assert "empty image files (1)" in plain_text(failed.stderr)
    assert not out.exists()


LABEL_FREE = ["--methods", "upl,transclip,gda", "--set", "epochs=1", "--set", "warmup_epochs=0"]


def test_a_dry_run_leaves_the_training_of_label_free_methods_out_of_its_estimate_and_names_them(root):
    options = ["dtd", "--root", root, *MODEL, *LABEL_FREE, *QUICK_BOOST, "--dry-run", "--images-per-second", "100"]
    result = caspl_reproduce(*options, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["not_estimated"] == ["upl", "transclip"]
    (dtd,) = plan["estimates"]
    # boosting 8; GDA, plain and boosted, of three seeds on 4 images of base classes;
    # rows of 4 test images, plain and boosted: zero-shot, TransCLIP, and UPL and GDA of three seeds
    assert (dtd["runs"], dtd["n_images"]) == (1 + 2 * 3, 8 + 2 * 3 * 4 + 2 * (1 + 1 + 3 + 3) * 4)
    assert "without the training of upl, transclip" in plain_text(caspl_reproduce(*options).stdout)


def test_a_single_data_set_has_rows_of_label_free_methods(root):
    out = root.parent / "one"
    options = ["--root", root, "--out", out, *MODEL, *QUICK_BOOST, "--seeds", "1", "--methods", "upl,lp-clip"]
    done = caspl_reproduce("dtd", *options, "--set", "epochs=1", "--set", "warmup_epochs=0")
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "results.json").read_text())["rows"]
    expected = {("zero-shot", None), ("upl", 1), ("lp-clip", 1)}
    assert {(row["method"], row["seed"], row["boosted"]) for row in rows} == {
        (method, seed, boosted) for method, seed in expected for boosted in (False, True)
    }
    assert all(row["h"] is not None for row in rows)


def test_a_timed_dry_run_prints_the_source_of_its_durations(root):
    options = ["--root", root, *MODEL, *QUICK, *QUICK_BOOST, "--dry-run"]
    result = caspl_reproduce("dtd", *options)
    assert result.exit_code == 0, result.output
    assert "timed steps of each kind of training" in plain_text(result.stdout)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "expected one of: a data set, --all, --check FILE"),
        (["dtd", "--all"], 2, "expected one of: a data set, --all, --check FILE"),
        (["--all", "--tables", "table-1"], 2, "expected some of base-to-new, domain-generalisation, few-shot"),
        (["--all", "--set", "width=3"], 1, "known keys"),
        (["--all", "--boost-set", "loss_weight=0"], 1, "'loss_weight'"),
        (["--all", "--methods", "coup"], 2, "unknown method 'coup'"),
        (["--all", "--methods", "gda,coop"], 2, "gda is not in the paper's tables"),
        (["--all", "--methods", "upl"], 2, "the paper's table 1 (base-to-new) has only coop, cocoop"),
        (["--all", "--methods", "coop,upl"], 2, "upl is not in the paper's tables; run it with"),
        (["--all", "--methods", "coop", "--tables", "few-shot"], 2, "(few-shot) has only promptsrc"),
        (["--all", "--shots", "4"], 2, "--shots is for one data set"),
        (["dtd", "--skip-missing"], 2, "--tables and --skip-missing require --all"),
        (["dtd", "--images-per-second", "3"], 2, "--images-per-second requires --dry-run"),
        (["dtd", "--tolerance", "2"], 2, "--tolerance requires --all or --check"),
        (["--check", "nowhere.json", "--boost-set", "epochs=3"], 2, "--check does not use --boost-set"),
        (["--check", "nowhere.json"], 1, "Cannot read the results nowhere.json"),
    ],
)
def test_wrong_options_are_errors_before_a_backbone_is_loaded(root, options, code, message):
    extra = [] if "--check" in options else ["--root", root, "--backbone", "ViT-Z-16"]
    result = caspl_reproduce(*options, *extra)
    assert result.exit_code == code
    assert message in plain_text(result.output)
