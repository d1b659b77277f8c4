"""Write the bill of materials of a lock file, with its dependency graph: `make sbom`.

cyclonedx-py reads packages, versions and hashes, but no comments: there uv names the packages that require each one.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

PROJECT: Final = "caspl-serve"
PACKAGE: Final = re.compile(r"^([A-Za-z0-9._-]+)==")
COMMENT: Final = re.compile(r"^ +# (?:via)?\s*(\S*)")


def plain(name: str) -> str:
    """Normalize a package's name, and omit its extras."""
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def requirements_of(lock: str) -> dict[str, set[str]]:
    """Return the packages that each package of a lock file requires, by name; also those of the project.

    Raises:
        ValueError: the file does not name the packages that require each one.
    """
    found: dict[str, set[str]] = defaultdict(set)
    required: set[str] = set()
    packages: list[str] = []
    for line in lock.splitlines():
        if match := PACKAGE.match(line):
            packages.append(plain(match[1]))
            found[packages[-1]] |= set()
        elif packages and (match := COMMENT.match(line)) and match[1] not in {"", "-c"}:
            found[plain(match[1])].add(packages[-1])
            required.add(packages[-1])
    if missing := set(packages) - required:
        raise ValueError(f"no comment names what requires {', '.join(sorted(missing))}. Run `make lock`")
    if unknown := set(found) - {*packages, PROJECT}:
        raise ValueError(f"{', '.join(sorted(unknown))} requires packages, but is not in the file. Run `make lock`")
    return found


def with_graph(bom: dict[str, Any], requirements: dict[str, set[str]]) -> dict[str, Any]:
    """Return a CycloneDX document with the dependencies of its root and of each package."""
    refs = defaultdict(list, {PROJECT: [bom["metadata"]["component"]["bom-ref"]]})
    for component in bom["components"]:
        refs[plain(component["name"])].append(component["bom-ref"])
    graph = [
        {"ref": ref, "dependsOn": sorted(one for name in required for one in refs[name])}
        for package, required in requirements.items()
        for ref in refs[package]
    ]
    return bom | {"dependencies": sorted(graph, key=lambda one: str(one["ref"]))}


def main(lock: str, target: str) -> int:
    """Write the bill of materials of a lock file."""
    options = ["requirements", lock, "--pyproject", "pyproject.toml", "--spec-version", "1.6", "--output-reproducible"]
    command = [sys.executable, "-P", "-m", "cyclonedx_py", *options, "--output-file", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed arguments
    if done.returncode:
        print(done.stderr.strip())
        return done.returncode
    try:
        requirements = requirements_of(Path(lock).read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"{lock}: {error}.")
        return 1
    bom = with_graph(json.loads(done.stdout), requirements)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(bom, indent=2) + "\n", encoding="utf-8")
    n_edges = sum(len(one["dependsOn"]) for one in bom["dependencies"])
    print(f"wrote {target}: {len(bom['components'])} packages, {n_edges} dependencies")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
