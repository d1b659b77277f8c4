"""Runs inside an image, with the standard library alone: starts the image's command, uses it, and stops it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

READY_WITHIN_S = 180
STOP_WITHIN_S = 60
FOLDERS = ("/", "/etc", "/opt", "/run/secrets/caspl", "/usr", "/usr/local/bin", "/store", "/weights", "/tmp")  # noqa: S108  mounted for the probe


def can_write(folder):
    """Whether a file can be created in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def is_healthy(check):
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


def classify(request):
    """The response to one request of the plan: its path, headers and body file."""
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
    connection.request("POST", request["path"], Path(request["body"]).read_bytes(), request["headers"])
    return json.load(connection.getresponse())


def serve(plan):
    """Start the image's command, wait until its health check passes, classify a picture, stop it."""
    with tempfile.TemporaryFile() as log:
        started_s = time.monotonic()
        process = subprocess.Popen(plan["command"], stdout=log, stderr=log)
        try:
            while not is_healthy(plan["health_check"]):
                if process.poll() is not None or time.monotonic() > started_s + READY_WITHIN_S:
                    log.seek(0)
                    return {"log": log.read().decode(errors="replace"), "status": process.poll()}
                time.sleep(0.2)
            facts = {"seconds_to_ready": round(time.monotonic() - started_s, 1), "answer": classify(plan["request"])}
            process.send_signal(signal.SIGTERM)
            return facts | {"status": process.wait(STOP_WITHIN_S), "is_healthy_after": is_healthy(plan["health_check"])}
        finally:
            process.kill()
            process.wait()


def main():
    plan = json.loads(sys.argv[1])
    doctor = subprocess.run(plan["doctor"], capture_output=True, text=True, check=False)
    facts = {
        "user": os.getuid(),
        "group": os.getgid(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "is_healthy_before": is_healthy(plan["health_check"]),
        "writable": [folder for folder in FOLDERS if Path(folder).is_dir() and can_write(folder)],
        "doctor": doctor.stdout or doctor.stderr,
        **serve(plan),
    }
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
