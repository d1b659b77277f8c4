"""Teaching a real server with the demo's backbone: the command, on a terminal and in pipes, and the clients."""

import asyncio
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

import caspl
from caspl.errors import ConflictError, NotFoundError
from service.demo.files import ASSETS
from service.demo.process import running
from training.demo.folders import write_labelled

N_CLASSES, SHOTS = 5, 8
COMMAND = [sys.executable, "-P", "-m", "caspl", "teach"]


@pytest.fixture(scope="module")
def url():
    with running(ASSETS, []) as (_, client):
        yield str(client.base_url)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Sketches of five classes: `train/<class>/` and `test/<class>/`."""
    folder = tmp_path_factory.mktemp("drawn") / "sketch"
    write_labelled("sketch", folder, shots=SHOTS, n_test=60, test_seed=600, n_classes=N_CLASSES)
    return folder


@pytest.fixture
def pictures(drawn, tmp_path):
    return shutil.copytree(drawn / "train", tmp_path / "pictures")


def environment(url):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    return kept | {"CASPL_URL": url, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "no_proxy": "*"}


def teach(url, folder, domain, *options, status=0):
    """The JSON result and stderr of a run with this exit status."""
    command = [*COMMAND, str(folder), "--domain", domain, "--json", *options]
    run = subprocess.run(command, env=environment(url), capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == status, run.stderr
    return json.loads(run.stdout), run.stderr


def accuracy(client, folder, domain):
    files = sorted(folder.glob("*/*.png"))
    results = client.classify(files, domain, top_k=1)
    names = [path.parent.name.replace("_", " ") for path in files]
    return sum(result.label == name for result, name in zip(results, names, strict=True)) / len(files)


def test_folders_become_a_live_domain_that_is_better_than_its_class_names(url, drawn, pictures):
    result, stderr = teach(url, pictures, "drawings")
    classes = sorted(folder.name.replace("_", " ") for folder in pictures.iterdir())

    assert f"Creating the domain drawings with 5 classes: {', '.join(classes)}" in stderr
    assert (result["is_new_domain"], result["version"], result["is_live"]) == (True, 2, True)
    assert result["pictures"] == {"added": N_CLASSES * SHOTS, "exists": 0, "relabelled": 0}
    assert result["report"]["n_examples"] == N_CLASSES * SHOTS
    with caspl.Client(url) as client:
        taught = accuracy(client, drawn / "test", "drawings")
        assert client.rollback("drawings").version == 1
        assert taught > accuracy(client, drawn / "test", "drawings") + 0.1


def test_running_again_adds_only_new_pictures_and_changes_labels(url, pictures):
    teach(url, pictures, "again")
    first, second = sorted(pictures.iterdir())[:2]
    moved = min(first.iterdir()).rename(second / "moved.png")
    Image.new("RGB", (64, 64), "red").save(second / "new.png")
    Image.new("RGB", (64, 64), "blue").save(pictures / "unnamed.png")
    result, _ = teach(url, pictures, "again", "--no-activate")

    assert result["pictures"] == {"added": 2, "exists": N_CLASSES * SHOTS - 1, "relabelled": 1}
    assert (result["is_new_domain"], result["version"], result["is_live"]) == (False, 3, False)
    assert str(moved) in [one["file"] for one in result["report"]["suspects"]]


@pytest.mark.parametrize(
    ("sent", "status", "line"),
    [("SIGKILL", -9, ""), pytest.param("SIGINT", 130, "Interrupted\n", marks=pytest.mark.slow)],
)
def test_an_interrupted_command_is_finished_by_running_it_again(url, pictures, sent, status, line):
    domain = f"interrupted-by-{sent.lower()}"
    command = [*COMMAND, str(pictures), "--domain", domain]
    for number in range(200):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(pictures / "plain_circle" / f"{number}.png")
    with (
        subprocess.Popen(command, env=environment(url), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process,
        caspl.Client(url) as client,
    ):
        ends_s = time.monotonic() + 60
        while domain not in {one.name for one in client.domains()} or not client.examples(domain):
            assert process.poll() is None
            assert time.monotonic() < ends_s
            time.sleep(0.01)
        process.send_signal(signal.Signals[sent])
        stderr = process.communicate()[1].decode()
    result, _ = teach(url, pictures, domain)

    n_pictures = 200 + N_CLASSES * SHOTS
    assert process.returncode == status
    assert stderr.endswith(line)
    assert result["pictures"]["exists"] > 0
    assert result["pictures"]["added"] + result["pictures"]["exists"] == n_pictures
    with caspl.Client(url) as client:
        assert len(client.examples(domain)) == n_pictures


def test_a_terminal_gets_a_bar_and_tables(url, pictures):
    own, its = pty.openpty()
    command = [*COMMAND, str(pictures), "--domain", "on-a-terminal"]
    with subprocess.Popen(command, env=environment(url) | {"TERM": "xterm"}, stdout=its, stderr=its) as process:
        os.close(its)
        shown = b""
        while chunk := read(own):
            shown += chunk
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())

    assert process.returncode == 0, text
    assert "━ 40/40" in text
    assert "accuracy (leave-one-out)" in text
    assert "2 (live)" in text


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_a_rejected_picture_is_named_and_does_not_stop_the_others(url, pictures):
    broken = pictures / "plain_circle" / "broken.png"
    broken.write_bytes(b"?")
    result, stderr = teach(url, pictures, "with-broken", status=1)

    assert [(one["file"], one["code"]) for one in result["rejected"]] == [(str(broken), "image_undecodable")]
    assert result["report"]["n_examples"] == N_CLASSES * SHOTS
    assert f"{broken}: " in stderr


def colour(*rgb):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), rgb).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("label", ["café au lait", '5" nail', "100%", "a\\b", "name; filename=x", "日本", "a&b=c"])
def test_every_label_arrives_as_it_was_given(url, label):
    domain = f"labels-{label.encode().hex()}"
    with caspl.Client(url) as client:
        client.create_domain(domain, [label, "other"])
        client.add_examples(domain, [(label, colour(1, 2, 3)), (None, colour(2, 2, 3))])

        assert [one.label for one in client.examples(domain)] == [label, None]
        assert [one.label for one in client.examples(domain, label=label)] == [label]


def test_examples_are_listed_relabelled_fitted_and_removed(url, drawn):
    async def life():
        async with caspl.AsyncClient(url) as client:
            files = sorted(drawn.glob("train/*/*.png"))
            labels = [path.parent.name for path in files]
            await client.create_domain("life", sorted(set(labels)), boosted_by="sketch")
            with pytest.raises(ConflictError):
                await client.create_domain("life", ["a", "b"])
            with pytest.raises(ConflictError):
                await client.fit("life")
            added = await client.add_examples("life", zip(labels, files, strict=True))
            assert {one.status for one in added} == {"added"}
            assert added[0].prediction.label in {label.replace("_", " ") for label in labels}
            assert {one.status for one in await client.add_examples("life", [(None, files[0])])} == {"exists"}

            ids = [one.id for one in added]
            wrong = await client.relabel("life", ids[:2], "new thing")
            assert wrong == 2
            report = await client.fit_report("life")
            assert (report.version, report.new_classes) == (None, ("new thing",))
            suspects = await client.examples("life", suspect=True)
            assert [one.id for one in suspects] == [one["id"] for one in report.report["suspects"]]
            assert set(ids[:2]) <= {one.id for one in suspects}
            assert await client.relabel("life", ids[:2], labels[0]) == 2
            unlabelled = await client.add_examples("life", [(None, colour(n, 0, 0)) for n in range(3)])
            uncertain = await client.examples("life", is_labelled=False, order="uncertain")
            assert {one.id for one in uncertain} == {one.id for one in unlabelled}
            assert [one.margin for one in uncertain] == sorted(one.margin for one in uncertain)

            made = await client.fit("life", method="ridge")
            assert (made.version, made.is_live, made.report["method"]) == (2, True, "ridge")
            assert 0 < made.accuracy <= 1
            kept = await client.examples("life", is_labelled=True)
            assert [one.id for one in kept] == sorted(ids)
            assert all(one.added_at.endswith("Z") and one.source == "upload" for one in kept)
            assert await client.remove_examples("life", ids[:3]) == 3
            assert await client.remove_examples("life", remove_all=True) == len(ids)
            assert await client.examples("life") == []
            with pytest.raises(NotFoundError):
                await client.relabel("life", [ids[0]], "new thing")

    asyncio.run(life())
