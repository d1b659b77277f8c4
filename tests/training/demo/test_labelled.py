from prompt_store.bundle import read_bundle
from training.demo.labelled import main
from training.demo.world import CLASS_NAMES


def test_the_drawn_domain_has_its_images_and_a_bundle_of_the_plain_student(tmp_path):
    main(tmp_path, ["satellite"], shots=1, n_test=5, seed=600)
    bundle = read_bundle((tmp_path / "satellite-plain.safetensors").read_bytes())
    assert set(bundle.tensors) == {"text.features"}
    assert bundle.manifest.domain == "satellite"
    assert {spec.name for spec in bundle.manifest.classes} == set(CLASS_NAMES)
    assert bundle.manifest.templates == ["a photo of a {}."]
    assert len(list(tmp_path.glob("satellite/train/*/*.png"))) == len(CLASS_NAMES)
    assert len(list(tmp_path.glob("satellite/test/*/*.png"))) == 5


def test_written_files_are_printed(tmp_path, capsys):
    main(tmp_path, ["night"], shots=2, n_test=3, classes=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"{tmp_path}/night/train",
        f"{tmp_path}/night/test",
        f"{tmp_path}/night-plain.safetensors",
    ]
    assert "2 images of each of 2 classes" in lines[0]
    assert "3 other images" in lines[1]


def test_the_first_classes_alone_can_be_drawn(tmp_path):
    main(tmp_path, ["thermal"], shots=2, n_test=8, classes=3)
    names = sorted(name.replace(" ", "_") for name in CLASS_NAMES[:3])
    assert sorted(folder.name for folder in (tmp_path / "thermal" / "train").iterdir()) == names
    assert [len(list((tmp_path / "thermal" / "train" / name).iterdir())) for name in names] == [2, 2, 2]
    assert {path.parent.name for path in tmp_path.glob("thermal/test/*/*.png")} <= set(names)
    bundle = read_bundle((tmp_path / "thermal-plain.safetensors").read_bytes())
    assert [spec.name for spec in bundle.manifest.classes] == list(CLASS_NAMES[:3])
