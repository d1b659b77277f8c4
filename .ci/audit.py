"""Look up all locked packages in advisory databases: `make audit`.

Exit codes: 0 no known vulnerability, 1 vulnerabilities or packages that no database has, 3 no database answered.
"""

import json
import subprocess
import sys
from typing import Any, Final

SOURCES: Final = ("pypi", "osv")
VULNERABLE: Final = 1
UNREACHABLE: Final = 3


def look_up(source: str, locks: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Run pip-audit on lock files with one database.

    Returns:
        pip-audit's facts about each package, and the reason if there are none.
    """
    files = [word for lock in locks for word in ("-r", lock)]
    options = ["--vulnerability-service", source, "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    command = [sys.executable, "-P", "-m", "pip_audit", *options, "--format", "json", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed arguments
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if all("skip_reason" in package for package in packages):
        return [], packages[0]["skip_reason"] if packages else "the lock files name no packages"
    return packages, ""


def main(locks: list[str]) -> int:
    """Print the vulnerabilities of the packages in these lock files, from the first database that answers."""
    reasons = {}
    for source in SOURCES:
        packages, reasons[source] = look_up(source, locks)
        if packages:
            return _report(source, packages)
    print("Nothing was audited: no advisory database gave an answer.")
    for source, reason in reasons.items():
        print(f"  {source}: {reason}")
    print("Run `make audit` on a machine with internet access; the lock files are all it needs.")
    return UNREACHABLE


def _report(source: str, packages: list[dict[str, Any]]) -> int:
    skipped = [package for package in packages if "skip_reason" in package]
    found = [(package, one) for package in packages for one in package.get("vulns", [])]
    for package, one in found:
        fixed = ", ".join(one.get("fix_versions", [])) or "no release yet"
        print(f"{package['name']} {package['version']}: {one['id']}, fixed in {fixed}")
    for package in skipped:
        print(f"{package['name']}: not audited: {package['skip_reason']}")
    n_audited = len(packages) - len(skipped)
    print(f"{n_audited} packages audited ({source}), {len(found)} known vulnerabilities, {len(skipped)} not audited.")
    return VULNERABLE if found or skipped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
