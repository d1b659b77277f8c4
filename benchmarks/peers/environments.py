"""A virtual environment per peer, since their pinned dependencies conflict.

torch and open_clip come from this environment, behind the peer's own packages on the path: the same kernels for all.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from rich.console import Console

from benchmarks.errors import BenchError

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
N_LOG_LINES = 6


def python_of(name: str, folder: Path, console: Console) -> Path:
    """The interpreter of a peer's environment, which is made if missing or outdated.

    Args:
        name: requirement file beside this module.
        folder: folder of all environments.
        console: for progress.

    Raises:
        BenchError: pip fails; with the end of its output.
    """
    wanted = (HERE / f"{name}.txt").read_text()
    root = (folder / name).resolve()
    installed = root / "installed.txt"
    python = root / "bin" / "python"
    if not (installed.is_file() and installed.read_text() == wanted):
        console.print(f"installing {' '.join(wanted.split())} into {folder / name}", markup=False)
        venv.create(root, clear=True)
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--progress-bar", "off"]
        run = subprocess.run(  # noqa: S603  our own command
            [*command, "--requirement", str(HERE / f"{name}.txt")], capture_output=True, text=True, check=False
        )
        if run.returncode:
            end = "\n".join((run.stdout + run.stderr).strip().splitlines()[-N_LOG_LINES:])
            msg = f"pip could not install {name} ({sys.version.split()[0]}): {end}"
            raise BenchError(msg)
        installed.write_text(wanted)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "zz_shared.pth").write_text("\n".join([*shared, str(CHECKOUT)]) + "\n")
    return python


def installed_version(python: Path, package: str) -> str:
    """Version of a package in an environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    run = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  ours
    return run.stdout.strip()
