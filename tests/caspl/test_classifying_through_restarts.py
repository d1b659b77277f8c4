"""`caspl classify` while a real server is restarted."""

import csv
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from PIL import Image

from prompt_store.store import Store
from service.demo.process import free_port
from tests.service.conftest import store
from tests.service.fakes import colour_bundle
from tests.service.processes import environment, eventually, serving

__all__ = ["store"]

COMMAND = [sys.executable, "-P", "-m", "caspl", "classify", "pictures", "--domain", "paint"]
COLOURS = ["red", "green", "blue"]
N_PICTURES = 5000


def draw(folder, n_pictures):
    """Pictures of three colours, a third each; the bytes of each are its own."""
    folder.mkdir()
    for number in range(n_pictures):
        image = Image.new("RGB", (8, 8), ["red", "lime", "blue"][number % 3])
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        (folder / f"{number:04}.png").write_bytes(file.getvalue())


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def n_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(folder, url, *options, **pipes):
    env = environment() | {"CASPL_URL": url, "COLUMNS": "200", "no_proxy": "*"}
    return subprocess.Popen([*COMMAND, *options], cwd=folder, env=env, **pipes)


@pytest.fixture(scope="module")
def lasting_url(tmp_path_factory):
    """A server that no test ends."""
    store = Store.open(tmp_path_factory.mktemp("lasting") / "store")
    store.activate("paint", store.add("paint", colour_bundle()).version)
    with serving(store) as (_, url):
        yield url


@pytest.mark.slow
def test_every_picture_is_answered_once_although_the_server_is_restarted_twice(store, tmp_path):
    draw(tmp_path / "pictures", N_PICTURES)
    port, out = free_port(), tmp_path / "out.csv"
    url = f"http://127.0.0.1:{port}"
    settings = {"port": port, "drain_delay_s": 0}
    with ExitStack() as stack:
        server, _ = stack.enter_context(serving(store, **settings))
        command = start(tmp_path, url, "--csv", "out.csv", stderr=subprocess.PIPE, text=True)
        stack.callback(command.kill)
        for n_rows, ending in ((1000, signal.SIGTERM), (3000, signal.SIGKILL)):
            eventually(lambda n_rows=n_rows: n_lines(out) > n_rows, 60)
            server.send_signal(ending)
            server.wait(30)
            assert command.poll() is None, "it ended before the restarts"
            server, _ = stack.enter_context(serving(store, **settings))
        stderr = command.communicate(timeout=100)[1]

    rows = rows_of(out)
    assert command.returncode == 0, stderr
    assert [row["file"] for row in rows] == [f"pictures/{number:04}.png" for number in range(N_PICTURES)]
    assert [row["label"] for row in rows] == [COLOURS[number % 3] for number in range(N_PICTURES)]
    assert f"{N_PICTURES} pictures classified, 0 with an error\n" in stderr


@pytest.mark.parametrize(
    ("sent", "status", "line"),
    [("SIGKILL", -9, ""), pytest.param("SIGINT", 130, "Interrupted\n", marks=pytest.mark.slow)],
)
def test_an_interrupted_run_is_continued_by_the_same_command(lasting_url, tmp_path, sent, status, line):
    draw(tmp_path / "pictures", 600)
    out = tmp_path / "out.csv"
    with start(tmp_path, lasting_url, "--csv", "out.csv", stderr=subprocess.PIPE, text=True) as command:
        eventually(lambda: n_lines(out) > 16)
        command.send_signal(signal.Signals[sent])
        assert command.communicate(timeout=60)[1].endswith(line)
    n_kept = len(rows_of(out))
    with start(tmp_path, lasting_url, "--csv", "out.csv", stderr=subprocess.PIPE, text=True) as second:
        stderr = second.communicate(timeout=60)[1]

    assert command.returncode == status
    assert 16 <= n_kept < 600
    assert stderr.startswith(f"{n_kept} pictures have a row in out.csv and are skipped")
    assert f"{600 - n_kept} pictures classified, 0 with an error\n" in stderr
    assert [row["file"] for row in rows_of(out)] == [f"pictures/{number:04}.png" for number in range(600)]


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_waits_for_the_server(store, tmp_path):
    draw(tmp_path / "pictures", 600)
    out = tmp_path / "out.csv"
    with serving(store) as (_, url):
        command = start(tmp_path, url, "--csv", "out.csv", stderr=subprocess.PIPE, text=True)
        eventually(lambda: n_lines(out) > 16)
    try:
        time.sleep(0.5)
        assert command.poll() is None
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=20)[1].endswith("Interrupted\n")
    finally:
        command.kill()
    assert command.returncode == 130


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_run_after_the_stated_time_and_rows_are_kept(store, tmp_path):
    draw(tmp_path / "pictures", 600)
    out = tmp_path / "out.csv"
    options = ("--csv", "out.csv", "--retry-for", "1")
    with serving(store) as (_, url):
        command = start(tmp_path, url, *options, stderr=subprocess.PIPE, text=True)
        eventually(lambda: n_lines(out) > 16)
    stderr = command.communicate(timeout=30)[1]

    n_rows = len(rows_of(out))
    assert command.returncode == 1
    assert f"{n_rows} pictures classified, 0 with an error, {600 - n_rows} without a result\n" in stderr
    assert f"error: Cannot reach {url}" in stderr
    assert stderr.endswith("Run the same command again to continue.\n")


def test_a_terminal_gets_a_bar_and_a_pipe_none(lasting_url, tmp_path):
    draw(tmp_path / "pictures", 20)
    own, its = pty.openpty()
    with start(tmp_path, lasting_url, stdout=its, stderr=its) as command:
        os.close(its)
        shown = b""
        while chunk := read(own):
            shown += chunk
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with start(tmp_path, lasting_url, "--json", **pipes) as piped:
        stderr = piped.communicate(timeout=30)[1]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())

    assert command.returncode == 0, text
    assert "━ 20/20" in text
    assert "0019.png" in text
    assert stderr == "20 pictures classified, 0 with an error\n"


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""
