"""A virtual environment per peer: their pins clash with each other's.

torch and open_clip are those of this environment, put behind the peer's own packages on the path: the same kernels for
everybody, and no second copy of several gigabytes each.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from rich.console import Console

from benchmarks.errors import BenchError

HERE = Path(__file__).parent
CODE = HERE.parents[1]
"""The folder that `benchmarks` is in."""
LINES_TOLD = 6


def python_of(name: str, folder: Path, console: Console) -> Path:
    """The interpreter of a peer's environment, made if it is not there.

    Args:
        name: of the requirement file beside this module.
        folder: where environments are kept.
        console: told what happens.

    Raises:
        BenchError: it cannot be installed; with the end of what pip said.
    """
    wanted = (HERE / f"{name}.txt").read_text()
    root = (folder / name).resolve()
    done = root / "installed.txt"
    python = root / "bin" / "python"
    if done.is_file() and done.read_text() == wanted:
        return python
    console.print(f"installing {' '.join(wanted.split())} into {folder / name}")
    venv.create(root, clear=True, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
    (site / "zz_shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n{CODE}\n")
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    run = subprocess.run(  # noqa: S603  our own command
        [*command, "--requirement", str(HERE / f"{name}.txt")], capture_output=True, text=True, check=False
    )
    if run.returncode:
        end = "\n".join((run.stdout + run.stderr).strip().splitlines()[-LINES_TOLD:])
        msg = f"pip could not install {name} ({sys.version.split()[0]}): {end}"
        raise BenchError(msg)
    done.write_text(wanted)
    return python


def installed_version(python: Path, package: str) -> str:
    """What version of a package an environment has."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    run = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  ours
    return run.stdout.strip()
