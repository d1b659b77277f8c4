"""Completion in real shells: installed by the command, then used in a new shell on a terminal of its own."""

import os
import pty
import select
import shutil
import signal
import sys
import time
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.slow

WAIT_S = 60.0
TAB_S = 3.0


@pytest.fixture
def home(tmp_path):
    """An empty home directory with a `caspl` in `bin/`."""
    command = tmp_path / "bin" / "caspl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m caspl "$@"\n')
    command.chmod(0o755)
    return tmp_path


@contextmanager
def terminal(shell, home):
    """An interactive shell: a function that types, and returns what appears until `expected` does."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"needs {shell}: apt install {shell}")
    variables = {"HOME": str(home), "ZDOTDIR": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "TERM": "xterm"}
    environment = os.environ | variables | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    process, descriptor = pty.fork()
    if process == 0:
        os.chdir(home)
        os.execve(found, [shell, "-i"], environment)  # noqa: S606

    def typed(text, expected, *, again_s=WAIT_S):
        shown, end_s, again_at_s = b"", time.monotonic() + WAIT_S, 0.0
        while expected not in shown:
            if time.monotonic() >= again_at_s:
                os.write(descriptor, text)
                again_at_s, text = time.monotonic() + again_s, text[-1:]
            assert time.monotonic() < end_s, shown
            if select.select([descriptor], [], [], 0.1)[0]:
                shown += os.read(descriptor, 4096)
        return shown

    try:
        yield typed
    finally:
        os.kill(process, signal.SIGKILL)
        os.close(descriptor)
        os.waitpid(process, 0)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_after_install_completion_a_new_shell_completes_commands_and_options(home, shell):
    with terminal(shell, home) as typed:
        typed(b"caspl --install-completion\r", b"completion installed in")
    with terminal(shell, home) as typed:
        typed(b"caspl cla\t", b"ssify", again_s=TAB_S)  # the first Tab of a zsh loads the completion only
        typed(b" --rec\t", b"ursive", again_s=TAB_S)
