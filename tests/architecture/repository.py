"""The repository's own files, for tests that read them."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("caspl", "prompt_store", "prompted_clip", "service", "training")


@functools.cache
def repository_files():
    """Paths relative to the root: what git tracks, or would track if it were added."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return tuple(Path(name) for name in sorted(listing.split("\0")) if name and (ROOT / name).is_file())


def text_files():
    """The repository's UTF-8 text files as (path, content)."""
    for path in repository_files():
        data = (ROOT / path).read_bytes()
        if b"\0" in data:
            continue
        yield path, data.decode("utf-8")


def python_files(*packages):
    """Python files of the named packages, or all of them."""
    return [path for path in repository_files() if path.suffix == ".py" and (not packages or path.parts[0] in packages)]


def module_name(path):
    """`service/http/routes/__init__.py` -> `service.http.routes`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
