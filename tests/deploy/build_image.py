"""Builds the container image without a daemon and examines it: `make image`.

Needs root, buildah, bubblewrap, and for `--debian` mmdebstrap. Where no registry can be reached, `--debian` makes a
base image of Debian's own Python 3.11 in a minimal system.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path

from tests.architecture.repository import ROOT

PROGRAMS = {"buildah": "buildah", "bwrap": "bubblewrap"}
STAND_IN = "localhost/python-on-debian:bookworm"
DEBIAN_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
N_LARGEST = 8
MIB = 2**20


def output(*command):
    """What a command prints; it must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def show(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def build_stand_in():
    """Make an image of Debian with `python` and `pip`, unless there is one."""
    if subprocess.run(["buildah", "inspect", STAND_IN], capture_output=True, check=False).returncode == 0:
        return
    container = output("buildah", "from", "scratch")
    root = output("buildah", "mount", container)
    options = ["--variant=minbase", f"--include={DEBIAN_PACKAGES}", "--mode=root", "--skip=check/empty"]
    subprocess.run(["mmdebstrap", *options, "bookworm", root], check=True)
    (Path(root) / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    output("buildah", "umount", container)
    output("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
    output("buildah", "commit", "--rm", container, STAND_IN)


def build(tag, arguments, volumes):
    """Run the Dockerfile's steps; HEALTHCHECK requires Docker's image format."""
    command = ["buildah", "build", "--format", "docker", "--isolation", "chroot", "--network", "host", "--layers"]
    command += [word for name, value in arguments.items() if value for word in ("--build-arg", f"{name}={value}")]
    command += [word for volume in volumes for word in ("--volume", volume)]
    subprocess.run([*command, "--tag", tag, str(ROOT)], check=True)


def size(folder):
    """Bytes of the files below a folder; a file with several names counts once."""
    seen = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = (Path(parent) / name).lstat()
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def locked_packages():
    """Sizes in MiB of the packages of the lock file that are installed here, with CUDA; and those that are not."""
    names = set(
        re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    )
    found = {re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(): one for one in distributions()}
    owners = {Path(file.locate()): name for name in names & found.keys() for file in found[name].files or []}
    sizes = Counter()
    for file, name in owners.items():
        if file.exists():
            sizes["CUDA" if name.startswith(("nvidia-", "cuda-")) else name] += file.lstat().st_size
    return {
        "locked_mib": round(sizes.total() / MIB),
        "largest_mib": {name: round(n_bytes / MIB) for name, n_bytes in sizes.most_common(N_LARGEST)},
        "not_installed": sorted(names - found.keys()),
    }


def measured(root, base_root):
    """Sizes in MiB: of the image, its base, the packages, and the largest of them."""
    packages = next((root / "opt/caspl/lib").glob("python*/site-packages"))
    parts = Counter({path.name: size(path) for path in packages.iterdir() if path.is_dir()})
    return {
        "image_mib": round(size(root) / MIB),
        "base_mib": round(size(base_root) / MIB),
        "packages_mib": round(size(packages) / MIB),
        "largest_mib": {name: round(n_bytes / MIB) for name, n_bytes in parts.most_common(N_LARGEST)},
    }


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--base", default="python:3.11-slim", help="base image  [python:3.11-slim]")
    base.add_argument("--debian", action="store_true", help="make a base image of Debian packages")
    parser.add_argument("--torch-index", default="", help="package index of another torch, such as PyTorch's CPU index")
    parser.add_argument("--torch", default="", help="versions of torch and torchvision to take from there  [locked]")
    parser.add_argument("--volume", action="append", default=[], help="HOST:FOLDER:ro to mount in each step")
    parser.add_argument(
        "--installed", action="store_true", help="build nothing; print the size of the locked packages here"
    )
    parser.add_argument("--name", default="cuda", help="of the image and of its folder in build/images  [cuda]")
    return parser.parse_args(words)


def main(words=None):
    options = parse(words)
    if options.installed:
        show(json.dumps(locked_packages(), indent=1))
        return
    needed = PROGRAMS | ({"mmdebstrap": "mmdebstrap"} if options.debian else {})
    if missing := [package for program, package in needed.items() if shutil.which(program) is None]:
        sys.exit(f"Install first: apt install {' '.join(missing)}")
    if options.debian:
        build_stand_in()
    base, tag = STAND_IN if options.debian else options.base, f"localhost/caspl-serve:{options.name}"
    build(tag, {"BASE": base, "TORCH_INDEX": options.torch_index, "TORCH": options.torch}, options.volume)
    containers = [output("buildah", "from", "--pull-never", image) for image in (tag, base)]
    try:
        root, base_root = (Path(output("buildah", "mount", container)) for container in containers)
        report = {"base": base, **measured(root, base_root), "root": str(root)}
        report["config"] = json.loads(output("buildah", "inspect", "--type", "image", tag))["Docker"]["config"]
        file = ROOT / "build" / "images" / f"{options.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        show(json.dumps({name: value for name, value in report.items() if name.endswith("_mib")}, indent=1))
        tests = ["tests/deploy/test_image.py", "tests/deploy/test_sandbox.py"]
        command = [sys.executable, "-P", "-m", "pytest", "-q", *tests]
        sys.exit(
            subprocess.run(command, cwd=ROOT, check=False, env=os.environ | {"IMAGE_REPORT": str(file)}).returncode
        )
    finally:
        output("buildah", "rm", *containers)


if __name__ == "__main__":
    main()
