"""`caspl bench ray`: the servers that it compares, and its ratios."""

import pytest

from benchmarks.ray_routing import WAYS, Found, RayOptions, add_numbers
from benchmarks.report import Report


def test_two_servers_run_on_ray_and_differ_in_their_routing_only():
    plain, load, domain = (RayOptions(replicas=3).words(way) for way in WAYS)

    assert plain == ()
    assert load == ("--ray", "--replicas", "3", "--route-by", "load")
    assert domain == ("--ray", "--replicas", "3", "--route-by", "domain")


def test_ratios_are_taken_within_rounds_for_each_number_of_domains():
    rates = {
        (1, "plain"): [10, 20, 40],
        (1, "load"): [5, 10, 20],
        (1, "domain"): [10, 10, 20],
        (2, "plain"): [1, 1, 1],
        (2, "load"): [1, 1, 1],
        (2, "domain"): [3, 3, 3],
    }
    report = Report("ray", {})

    found = {key: Found(list(map(float, per_s)), n_failed=1) for key, per_s in rates.items()}
    add_numbers(report, found, RayOptions(slots=8, over=(1, 2)))

    values = {name: number["value"] for name, number in report.numbers.items()}
    assert values == pytest.approx(
        {"domain_by_load_1x": 1, "load_by_plain_1x": 0.5, "domain_by_load_2x": 3, "load_by_plain_2x": 1, "failed": 6}
    )
    rows = [row[:2] for row in report.tables["Closed loops"].rows]
    assert rows == [(8, way) for way in WAYS] + [(16, way) for way in WAYS]
