import json
import logging

from service.observability.logs import JsonFormatter, TextFormatter, request_id


def record(message="bundle.activated", **facts):
    made = logging.LogRecord("service.domains.publisher", logging.INFO, "file", 1, message, (), None)
    vars(made).update(facts)
    return made


def test_a_json_line_holds_the_event_its_facts_and_the_request():
    token = request_id.set("req-1")
    line = json.loads(JsonFormatter().format(record(domain="paint", version=3)))
    request_id.reset(token)
    assert (line["event"], line["domain"], line["version"], line["request_id"]) == (
        "bundle.activated",
        "paint",
        3,
        "req-1",
    )
    assert "request_id" not in json.loads(JsonFormatter().format(record()))


def test_what_a_client_sent_cannot_start_a_new_line():
    for formatter in (JsonFormatter(), TextFormatter()):
        assert "\n" not in formatter.format(record("x\ny", name_given="a\r\nlevel=error \x1b[31m"))
        assert "\x1b" not in formatter.format(record(name_given="\x1b[31m"))
