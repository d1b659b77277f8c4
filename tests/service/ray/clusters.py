"""A service on a Ray of its own, in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import psutil

from service.demo.process import free_port

READY_WITHIN_S = 150
UPDATING = """
import json, sys
from service.ray import command
from service.ray.options import RayOptions
from service.settings import Settings
from service.ray.application import NAME, Layout, application

def update(settings, layout):
    import ray
    from ray import serve
    serve.run(application(Settings(**settings), Layout(**layout)), name=NAME, logging_config={"log_level": "WARNING"})

def announce_and_update(console, settings, layout, address):
    print("ready", flush=True)
    for line in sys.stdin:
        update(**json.loads(line))
        print("updated", flush=True)

command._announce = announce_and_update
sys.exit(command.run(Settings(**json.loads(sys.argv[1])), RayOptions(2, None, "load"), None))
"""
"""Serves on Ray and deploys the settings and layout of each line of its input, as `serve deploy` does."""


CLUSTER = """
import sys
import ray

ray.init(address="local", num_cpus=1, object_store_memory=80_000_000, include_dashboard=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def environment(folder, variables):
    """Without Ray's parts that tests do not need, on one core per replica."""
    # jsonschema imports this package if it is installed, which takes seconds in each of Ray's ten processes.
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CASPL_", "RAY_"))}
    return kept | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder),
        "RAY_AUTH_MODE": "disabled",  # clusters of other tests have other tokens
        "CASPL_DRAIN_DELAY_S": "0.5",
        "CASPL_LOG_LEVEL": "warning",
        "CASPL_N_TORCH_THREADS": "1",
        **variables,
    }


def replicas(process):
    """The ids of the processes of the replicas, among all that a process has started."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [one.pid for one in started if is_replica(one)]


def is_replica(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[:1][0].startswith("ray::ServeReplica")
    except (psutil.NoSuchProcess, IndexError):
        return False


@contextmanager
def running(folder, command, port, *, stdin=None, variables=()):
    """Run a command until `/readyz` of its service succeeds; yields its process and URL."""
    url = f"http://127.0.0.1:{port}"
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", *command],
            env=environment(folder, dict(variables)),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=file,
        )
    try:
        ends_s = time.monotonic() + READY_WITHIN_S
        while not is_ready(url):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < ends_s, log.read_text()[-3000:]
            time.sleep(0.2)
        yield process, url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def is_ready(url):
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=10).is_success
    except httpx.TransportError:
        return False


@contextmanager
def serving(folder, *options, **variables):
    """`caspl serve --demo --ray` with these options and environment variables."""
    port = free_port()
    command = ["-m", "caspl", "serve", "--demo", "--ray", "--port", str(port), "--store", str(folder / "store")]
    with running(folder, [*command, *options], port, variables=variables) as found:
        yield found


@contextmanager
def cluster(folder):
    """A Ray of one core without a service; yields its address."""
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", CLUSTER],
            env=environment(folder, {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    with process:  # closes its input, and waits
        yield process.stdout.readline().decode().strip()


class Updating:
    """A service on Ray whose settings and layout change while it serves."""

    def __init__(self, process, url, settings):
        self.process, self.url, self._settings = process, url, settings

    def update(self, layout, **changed):
        """Deploy changed settings and another layout; returns when all replicas have them."""
        line = {"settings": self._settings | changed, "layout": {"min_replicas": 2, "max_replicas": 2} | layout}
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"updated\n"


@contextmanager
def updating(folder):
    """A service with two replicas whose settings and layout can be changed."""
    settings = {"backbone": "demo-student", "store": str(folder / "store"), "port": free_port()}
    command = ["-c", UPDATING, json.dumps(settings)]
    with running(folder, command, settings["port"], stdin=subprocess.PIPE) as (process, url):
        assert process.stdout.readline() == b"ready\n"
        try:
            yield Updating(process, url, settings)
        finally:
            process.stdin.close()


def samples(url, name, **labels):
    """The values of a metric with these labels, by replica."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
    found = {}
    for shown, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        given = dict(re.findall(r'(\w+)="([^"]*)"', shown))
        if labels.items() <= given.items():
            found[given["replica"]] = found.get(given["replica"], 0) + float(value)
    return found
