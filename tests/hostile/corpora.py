"""Runs the corpora through the decoder, the bundle reader and a server, and lists every answer that is not expected."""

import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from prompt_store import BundleInvalidError, Store, read_bundle
from prompted_clip.preprocess import upright_rgb
from service.images.decoder import open_image
from service.settings import Settings
from tests.service.fakes import colour_bundle
from tests.service.processes import client_of

PROBLEM = "application/problem+json"
LEAKS = re.compile(r"0x[0-9a-f]{6}|Traceback|BytesIO|object at|/tmp/|site-packages|\.py\b")
"""Not allowed in an answer: addresses, paths and code of the server."""
MAX_ANSWER_S = 20


@dataclass(frozen=True)
class Answer:
    """Statuses on one connection, and the code and text of the last body."""

    statuses: tuple[int, ...]
    code: str
    text: str


def live_store(folder):
    """A store with the live domain `paint`."""
    store = Store.open(folder / "store")
    store.activate("paint", store.add("paint", colour_bundle()).version)
    return store


def problem_with(case, answer):
    """How an answer differs from what is expected; None if it does not."""
    found = f"{case.name}: {answer.statuses} {answer.code!r}"
    if answer.statuses != (case.status,) or (case.codes and answer.code not in case.codes):
        return f"{found}, expected {case.status} {sorted(case.codes)}"
    return f"{found} has internals: {answer.text[:200]}" if LEAKS.search(answer.text) else None


def problems(cases, answer_of):
    """All problems with the answers to cases."""
    return [problem for case in cases if (problem := problem_with(case, answer_of(case.data)))]


def image_sender(url):
    """Posts one image over a kept connection and returns its `Answer`."""
    client = client_of(url)

    def send(data):
        response = client.post("/classify/paint", content=data, headers={"content-type": "image/png"})
        return _answer(response.status_code, response.headers.get("content-type", ""), response.text)

    return send


def bundle_sender(url, domain="flowers"):
    """Uploads one bundle and returns its `Answer`."""
    client = client_of(url)

    def send(data):
        kind = {"content-type": "application/octet-stream"}
        response = client.post(f"/domains/{domain}/versions", content=data, headers=kind)
        return _answer(response.status_code, response.headers.get("content-type", ""), response.text)

    return send


def _answer(status, media_type, text):
    return Answer((status,), json.loads(text)["code"] if media_type == PROBLEM else "", text)


def raw_sender(url):
    """Sends bytes on a connection of their own and reads until the server closes it."""
    address = (urlsplit(url).hostname, urlsplit(url).port)

    def send(data):
        with socket.create_connection(address, timeout=MAX_ANSWER_S) as connection:
            parts, is_reset = [], False
            try:
                connection.sendall(data)
                while part := connection.recv(1 << 16):
                    parts.append(part)
            except (BrokenPipeError, ConnectionResetError):  # closed while this client was still sending
                is_reset = True
        return _raw_answer(b"".join(parts), is_reset=is_reset)

    return send


def _raw_answer(response, *, is_reset):
    if is_reset and not response:
        return Answer((400,), "", "")  # refused before the client had sent everything: the reset overtook the answer
    statuses = tuple(int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", response))
    head, _, body = response.partition(b"\r\n\r\n")
    text = body.decode(errors="replace")
    code = json.loads(text)["code"] if PROBLEM.encode() in head.lower() and len(statuses) == 1 else ""
    return Answer(statuses, code, text)


def wrong_pixels(images):
    """Good images whose pixels are not those that they must have."""
    settings, wrong = Settings(), []
    for image in images:
        shown, _ = open_image(image.data, settings, lambda opened, _: upright_rgb(opened))
        found = np.asarray(shown).astype(int)
        expected = image.pixels.astype(int)
        if found.shape != expected.shape or np.abs(found - expected).max() > image.tolerance:
            wrong.append(image.name)
    return wrong


def wrong_codes(cases):
    """Bundles that the reader accepts, or refuses with another code."""
    wrong = []
    for case in cases:
        try:
            read_bundle(case.data)
        except BundleInvalidError as error:
            if error.code not in case.codes or LEAKS.search(str(error)):
                wrong.append(f"{case.name}: {error.code}, expected {sorted(case.codes)}")
        else:
            wrong.append(f"{case.name}: accepted")
    return wrong


def resident_mebibytes(pid):
    """Largest resident memory so far of a process."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
