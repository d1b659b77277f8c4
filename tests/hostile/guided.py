"""Coverage-guided fuzzing of four parsers with Atheris: of bundle headers, strict JSON, image headers and multipart.

    python -P -m tests.hostile.guided header -max_total_time=60

The remaining arguments are libFuzzer's. An input for which a property does not hold ends the run and is kept.
"""

import asyncio
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
N_RUNS = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
LIMITS = ("-rss_limit_mb=2048", "-timeout=5", "-max_len=4096", "-print_final_stats=1", "-verbosity=0")


def header(data):
    """What our parser accepts, the safetensors library reads alike; everything else is refused."""
    from prompt_store.errors import BundleInvalidError
    from prompt_store.header import check_with_safetensors, parse_header

    try:
        found = parse_header(data)
    except BundleInvalidError:
        return
    check_with_safetensors(data, found)  # a disagreement is not caught


def strict_json(data):
    """What is accepted, `json.loads` reads alike, and it survives being written."""
    from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

    try:
        found = load_object(data)
    except StrictJsonError:
        return
    assert found == json.loads(data)
    assert load_object(dump_canonical(found)) == found


def image_headers(data):
    """Every file has a header or is refused, and what is left to decode has at most as many bytes."""
    from service.errors import ImageRejectedError
    from service.images.headers import check_size, check_work, read_header
    from service.settings import Settings

    settings = Settings()
    try:
        found = read_header(data, settings.max_image_bytes)
        check_size(found.size, settings)
        assert len(check_work(data, found, settings)) <= len(data)
    except ImageRejectedError:
        return


def multipart(data):
    """Every body has files or is refused."""
    from starlette.requests import Request

    from service.errors import ServiceError
    from service.http.routes.multipart_images import read_multipart
    from service.settings import Settings

    async def receive():
        return {"type": "http.request", "body": data, "more_body": False}

    kind = (b"content-type", b"multipart/form-data; boundary=x")
    request = Request({"type": "http", "method": "POST", "headers": [kind]}, receive)
    try:
        found = asyncio.run(read_multipart(request, Settings()))
    except ServiceError:
        return
    assert data.count(b"--x") > len(found)


HARNESSES = {"header": header, "strict_json": strict_json, "image_headers": image_headers, "multipart": multipart}


def seeds(name):
    """A few inputs to begin with."""
    from tests.hostile.bad_images import KINDS, photo
    from tests.hostile.bundle_rules import ACCEPTED, HEADER_TEXT, VALID
    from tests.hostile.http_cases import FORMS

    return {
        "header": [VALID, ACCEPTED["spaces as padding"]],
        "strict_json": [HEADER_TEXT.encode(), b'{"a": [1, -2.5e3, "\\u00e9", null, true]}'],
        "image_headers": [photo(kind, size=(20, 16)) for kind in KINDS],
        "multipart": [body for body in FORMS if body],
    }[name]


def is_installed():
    """Whether Atheris is installed."""
    return find_spec("atheris") is not None


def fuzz(name, seconds, folder):
    """Run one harness in a process; returns the number of inputs, and what went wrong or an empty string."""
    corpus = folder / f"corpus-{name}"
    corpus.mkdir()
    for number, data in enumerate(seeds(name)):
        (corpus / str(number)).write_bytes(data)
    command = [sys.executable, "-c", "from tests.hostile.guided import main; main()", name, str(corpus)]
    options = [*LIMITS, f"-max_total_time={max(1, int(seconds))}", f"-artifact_prefix={folder}/{name}-"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    counted = N_RUNS.search(text)
    return int(counted[1]) if counted else 0, "" if done.returncode == 0 else f"{name}: {text[-1500:]}"


def main():
    """The process of one harness."""
    import atheris

    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["prompt_store", "service.images", "service.http", "python_multipart"]):
        HARNESSES[name](b"")
    atheris.Setup([sys.argv[0], *arguments], HARNESSES[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
