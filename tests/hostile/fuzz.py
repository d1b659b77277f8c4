"""All hostile input in a bounded time: corpora, coverage-guided fuzzing, requests made from the OpenAPI document.

make fuzz SECONDS=300
"""

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.report import Report, Table, Target
from tests.hostile import guided
from tests.hostile.bad_images import bad_images
from tests.hostile.bundle_cases import accepted_bundles, refused_bundles
from tests.hostile.corpora import (
    bundle_sender,
    image_sender,
    live_store,
    problems,
    raw_sender,
    resident_mebibytes,
    wrong_codes,
    wrong_pixels,
)
from tests.hostile.good_images import good_images
from tests.hostile.http_cases import answered_requests, refused_requests
from tests.prompt_store.samples import tree
from tests.results import publish
from tests.service.fakes import picture
from tests.service.processes import serving

NONE = Target("<=", 0)
MAX_GROWTH = Target("<=", 400)
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
EXPECTED = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]\n'
"""504 is the right answer to a deadline of a millisecond."""
GENERATED = re.compile(r"Test cases:\s+(\d+) generated", re.IGNORECASE)


def run_corpora(report, folder):
    """The decoder, the bundle reader and a server with every case."""
    bad, good, refused, accepted = bad_images(), good_images(), refused_bundles(), accepted_bundles()
    requests = [*refused_requests(), *answered_requests()]
    store, found = live_store(folder), {}
    before = tree(store.root)
    with serving(store) as (process, url):
        send = image_sender(url)
        send(picture())
        start_mib = resident_mebibytes(process.pid)
        found["bad_images"] = problems(bad, send)
        found["good_images"] = [image.name for image in good if send(image.data).statuses != (200,)]
        growth_mib = resident_mebibytes(process.pid) - start_mib
        found["pixels"] = wrong_pixels(good)
        found["bundles"] = wrong_codes(refused) + problems(refused, bundle_sender(url))
        found["requests"] = problems(requests, raw_sender(url))
        found["well"] = [] if send(picture("green")).statuses == (200,) else ["no answer to a good image"]
    found["store"] = [] if tree(store.root) == before else ["refused bundles changed the store"]
    found["accepted"] = rejected(accepted)
    texts = {
        "bad_images": f"of {len(bad):,} bad images: another status or code than expected, or internals in the answer",
        "good_images": f"of {len(good):,} unusual good images: not answered",
        "pixels": f"of the same {len(good):,}: other pixels than expected (of blended ones one level is allowed)",
        "bundles": f"of {len(refused):,} bad bundles, read and uploaded: another code than expected",
        "store": "1 if the uploads changed any file of the store",
        "accepted": f"of {len(accepted):,} unusual good bundles: refused",
        "requests": f"of {len(requests):,} raw HTTP requests: another status or code than expected",
        "well": "1 if the server does not answer a good image afterwards",
    }
    for name, text in texts.items():
        report.add(f"fuzz_{name}", len(found[name]), text, NONE)
    report.add("fuzz_memory_mib", growth_mib, "largest resident memory above that before the images, MiB", MAX_GROWTH)
    return [problem for name in texts for problem in found[name]]


def rejected(accepted):
    from prompt_store import BundleInvalidError, read_bundle

    wrong = []
    for name, data in accepted.items():
        try:
            read_bundle(data)
        except BundleInvalidError as error:
            wrong.append(f"{name}: {error.code}")
    return wrong


def run_guided(report, folder, seconds):
    """Atheris on each parser."""
    if not guided.is_installed():
        report.notes.append("Without coverage-guided fuzzing: Atheris is not installed.")
        return []
    found, rows = [], []
    for name in guided.HARNESSES:
        n_inputs, problem = guided.fuzz(name, seconds / len(guided.HARNESSES), folder)
        rows.append((name, f"{n_inputs:,}", "failed" if problem else ""))
        found += [problem] if problem else []
    n_all = sum(int(row[1].replace(",", "")) for row in rows)
    report.add("fuzz_guided", len(found), f"of {n_all:,} inputs found by coverage: a property does not hold", NONE)
    report.tables["Coverage-guided inputs"] = Table(("parser", "inputs", ""), rows)
    return found


def run_openapi(report, folder, n_examples):
    """Schemathesis on a server: requests made from its OpenAPI document."""
    if find_spec("schemathesis") is None:
        report.notes.append("Without requests from the OpenAPI document: Schemathesis is not installed.")
        return []
    (folder / "schemathesis.toml").write_text(EXPECTED)
    with serving(live_store(folder), log_level="error") as (_, url):
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", "--checks", CHECKS]
        command += ["--max-examples", str(n_examples), "--seed", "26", "--no-color", "--request-timeout", "30"]
        command += ["--generation-database", "none"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    counted = GENERATED.search(done.stdout)
    if counted is None:
        sys.exit(f"Schemathesis ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    text = f"1 if any of {int(counted[1]):,} requests from the OpenAPI document gets a 5xx but 504, or another form"
    report.add("fuzz_openapi", int(done.returncode != 0), text, NONE)
    return [done.stdout[-4000:]] if done.returncode else []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="for coverage-guided fuzzing")
    parser.add_argument("--examples", type=int, default=15, help="per operation of the OpenAPI document")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    words = parser.parse_args()
    report = Report("fuzz", {"seconds": words.seconds, "examples": words.examples})
    found = []
    for number, run in enumerate((run_corpora, run_guided, run_openapi)):
        with tempfile.TemporaryDirectory(prefix="caspl-fuzz-") as name:
            given = ((), (words.seconds,), (words.examples,))[number]
            found += run(report, Path(name), *given)
    report.samples = {"problems": found}
    for problem in found:
        sys.stderr.write(problem + "\n")
    return publish(report, words.out, f"make fuzz SECONDS={words.seconds:g}")


if __name__ == "__main__":
    sys.exit(main())
