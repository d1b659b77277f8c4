"""Results of the commands that prove reliability: `docs/results/NAME.json`, and Markdown that is generated from it."""

import sys

from benchmarks.report import markdown, write_result


def publish(report, folder, command):
    """Write a report under the command that makes it, print it, and end with 1 if a target was missed."""
    result = report.as_object() | {"command": command}
    write_result(result, folder)
    sys.stdout.write(markdown(result) + "\n")
    return 1 if any(number.get("met") is False for number in result["numbers"].values()) else 0
