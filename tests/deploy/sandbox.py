"""Runs an image's command as Kubernetes would: read-only root, a user without a name, no network but loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip

from prompt_store.store import Store
from prompted_clip.sources import DEMO_FOLDER, register_architectures
from service.access.key_file import add_key
from service.demo.files import ASSETS, BACKBONE, seed_store
from tests.architecture.repository import ROOT

USER = 1000710000
"""Outside every /etc/passwd; OpenShift assigns such users."""
PROBE = Path(__file__).with_name("probe.py")
PICTURE = ASSETS / "images" / "satellite" / "striped-donut-1.jpg"
REPOSITORY = "caspl/demo-student"
WITHIN_S = 400


def missing_programs():
    """What the sandbox needs and this machine lacks, as the command that installs it; None if nothing."""
    if os.geteuid() != 0:
        return "needs root, to start processes as another user"
    lacking = [name for name in ("bwrap", "setpriv") if shutil.which(name) is None]
    return "needs bubblewrap: apt install bubblewrap" if lacking else None


class Volumes:
    """Folders as a cluster mounts them: the store is owned by root and writable for its group 0."""

    def __init__(self, folder):
        self.store, self.weights, self.keys, self.inputs = (
            folder / name for name in ("store", "weights", "keys", "in")
        )
        seed_store(Store.open(self.store), ASSETS / "bundles")
        subprocess.run(["chmod", "-R", "g=u", self.store], check=True)
        self._fill_hub_cache()
        self.keys.mkdir()
        self.key = add_key(self.keys / "keys.json", ["classify"], [])
        (self.keys / "keys.json").chmod(0o440)  # a Secret with fsGroup
        self.inputs.mkdir()
        shutil.copy(PROBE, self.inputs)
        shutil.copy(PICTURE, self.inputs / "picture.jpg")
        for opened in (folder, self.inputs, self.keys):
            opened.chmod(0o755)

    def _fill_hub_cache(self):
        """The demo's weights as the Hugging Face Hub's client caches them."""
        revision = "0" * 40
        cache = self.weights / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
        snapshot = cache / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(revision)
        shutil.copy(DEMO_FOLDER / f"{BACKBONE}.safetensors", snapshot / "open_clip_model.safetensors")
        register_architectures()
        config = {"model_cfg": open_clip.get_model_config(BACKBONE), "preprocess_cfg": {}}
        (snapshot / "open_clip_config.json").write_text(json.dumps(config))


def host_root():
    """bwrap's arguments for a root with this machine's Python and packages, in place of a built image."""
    folders = {
        Path("/usr"),
        *(path for path in ROOT.iterdir() if path.is_dir()),  # the checkout's own folder may be closed to others
        Path(sys.prefix),
        Path(sys.base_prefix),
        *(Path(path) for path in sys.path if path.endswith("-packages")),
    }
    parents = {parent for folder in folders for parent in folder.parents} - {
        Path("/")
    }  # bwrap would close them to others
    opened = [word for parent in sorted(parents) for word in ("--dir", str(parent))]
    binds = [word for folder in sorted(folders) for word in ("--ro-bind", str(folder), str(folder))]
    links = [word for name in ("bin", "lib", "lib64", "sbin") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    return [*opened, *binds, *links, "--dir", "/etc", "--dir", "/opt"]


def built_root(folder):
    """bwrap's arguments for the root of a built image."""
    return ["--ro-bind", str(folder), "/"]


def run(root, volumes, image, *, path=""):
    """Start the image's command in the sandbox and use it.

    Args:
        root: bwrap's arguments for the root.
        volumes: to mount.
        image: the Dockerfile.
        path: a folder of programs to prefer to the image's.

    Returns:
        The facts that the probe prints.
    """
    environment = image.environment() | {
        "CASPL_BACKBONE": f"hf-hub:{REPOSITORY}",
        "CASPL_DRAIN_DELAY_S": "0.2",
        "HF_HUB_OFFLINE": "1",
    }
    environment["PATH"] = f"{path}:{environment['PATH']}" if path else environment["PATH"]
    headers = {"Authorization": f"Bearer {volumes.key}", "Content-Type": "image/jpeg"}
    plan = {
        "command": image.command(),
        "health_check": image.health_check(),
        "doctor": ["caspl", "doctor", "--json", "--store", "/store"],
        "request": {"path": "/classify/satellite", "headers": headers, "body": "/run/in/picture.jpg"},
    }
    command = [
        *("bwrap", "--die-with-parent", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--clearenv"),
        *(word for pair in environment.items() for word in ("--setenv", *pair)),
        *root,
        *("--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp", "--tmpfs", "/run"),  # noqa: S108
        *("--dir", "/run/secrets"),
        *("--bind", str(volumes.store), "/store", "--ro-bind", str(volumes.weights), "/weights"),
        *("--ro-bind", str(volumes.keys), "/run/secrets/caspl", "--ro-bind", str(volumes.inputs), "/run/in"),
        *("--remount-ro", "/run", "--remount-ro", "/", "--chdir", image.only("WORKDIR")),
        *("setpriv", f"--reuid={USER}", "--regid=0", "--clear-groups", "--no-new-privs", "--bounding-set=-all"),
        *("python", "-P", "/run/in/probe.py", json.dumps(plan)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
