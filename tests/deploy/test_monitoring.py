"""The Prometheus rules and the Grafana dashboard fit the metrics that the service exports."""

import json
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCUMENTED = (DEPLOY.parent / "docs" / "scheduling.md").read_text(encoding="utf-8")
ALERTS = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "caspl.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
METRIC = re.compile(r"\b(caspl_\w+|process_\w+)\b")


def metrics_in(text):
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in METRIC.findall(text)}


def documented():
    """Metrics and their labels, from the table in docs/scheduling.md, which a test compares with the service."""
    rows = re.findall(r"^\| `(caspl_\w+)` \|([^|]*)\|", DOCUMENTED, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


@pytest.mark.parametrize("text", [ALERTS, *EXPRESSIONS], ids=lambda text: text[:40])
def test_every_metric_is_one_that_the_service_exports(text):
    known = documented().keys() | {"process_start_time_seconds", "process_resident_memory_bytes"}
    assert metrics_in(text)
    assert metrics_in(text) <= known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_that_a_panel_groups_by_is_one_of_the_metrics(expression):
    labels = {name for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(", ")}
    known = set().union(*(documented().get(name, set()) for name in metrics_in(expression)))
    assert labels <= known | {"le", "instance", "job"}


def test_panels_neither_overlap_nor_leave_the_grid():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = set(product(columns, rows))
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_promtool_accepts_configurations_and_rules_and_the_rules_pass_their_own_tests():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: apt install prometheus")
    for command in (
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
    ):
        done = subprocess.run([promtool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
