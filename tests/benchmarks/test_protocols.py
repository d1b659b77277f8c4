"""What speaking HTTP costs: every way answers the same, and the cost is the server's own."""

import httpx
import pytest

from benchmarks.protocols import BODY_BYTES, PROTOCOLS, Cost, cost_of, markdown_table, serving


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_way_refuses_in_the_same_words(name):
    with serving(name) as url:
        answer = httpx.post(url, content=bytes(BODY_BYTES), trust_env=False, timeout=30)
        assert (answer.status_code, answer.headers["retry-after"], len(answer.json()["a"])) == (429, "2", 300)


def test_the_cost_is_that_of_the_servers_process(tmp_path):
    (tmp_path / "body").write_bytes(bytes(BODY_BYTES))
    seconds = 0.5
    with serving("as served") as url:
        httpx.get(url, trust_env=False, timeout=30)
        cost = cost_of(url, tmp_path / "body", seconds)

    assert 0 < cost.cpu_ms * cost.per_s / 1e3 <= 1.5, "one thread computes no more than a second each second"


def test_the_table_has_a_line_for_each():
    table = markdown_table({"a": Cost(0.1234, 1000.4), "b": Cost(1, 2)})
    assert table.splitlines()[2:] == ["| a | 0.123 | 1000 |", "| b | 1.000 | 2 |"]
