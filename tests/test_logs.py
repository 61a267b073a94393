"""Logs are events with fields."""

from __future__ import annotations

import json
import logging

from wva_adapter.logs import JsonLines


def test_a_record_is_one_line_of_json_with_its_fields() -> None:
    record = logging.LogRecord("wva", logging.INFO, "f", 1, "variant decided", (), None)
    record.__dict__.update({"variant": "chat/llama", "desired": 5})
    record.created = 0.5
    line = json.loads(JsonLines().format(record))
    assert line == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "logger": "wva",
        "event": "variant decided",
        "variant": "chat/llama",
        "desired": 5,
    }


def test_an_exception_keeps_its_traceback_on_the_same_line() -> None:
    try:
        raise ValueError("boom")
    except ValueError as error:
        failure = (type(error), error, error.__traceback__)
    record = logging.LogRecord("wva", logging.ERROR, "f", 1, "cycle failed", (), failure)
    text = JsonLines().format(record)
    assert "\n" not in text
    assert "ValueError: boom" in json.loads(text)["traceback"]
