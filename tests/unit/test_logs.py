"""Logs as text and as JSON."""

import json
import logging
import subprocess
import sys

import pytest

from forebay.cacheruntime.config import default_log_format
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.logs import JsonFormatter, json_line, say


def test_a_record_is_one_line_of_json() -> None:
    try:
        raise ValueError("inner\nline")
    except ValueError:
        record = logging.LogRecord("forebay.x", logging.WARNING, "f", 1, "lost %s\nof it", ("a",), sys.exc_info())
    record.created = 86400.25
    line = JsonFormatter("worker").format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("pid") == record.process
    assert fields.pop("exception").startswith("Traceback")
    assert fields == {
        "time": "1970-01-02T00:00:00.250Z", "level": "WARNING", "process": "worker", "logger": "forebay.x",
        "message": "lost a\nof it",
    }  # fmt: skip


def test_names_that_are_not_utf8_do_not_stop_a_log() -> None:
    assert json.loads(json_line("w", "INFO", "b\udcff", "l", 0.0, 1))["message"] == "b\udcff"


def test_say(capsys: pytest.CaptureFixture[str]) -> None:
    say("supervisor", "json", "here")
    assert json.loads(capsys.readouterr().out)["message"] == "here"
    say("supervisor", "text", "here")
    assert capsys.readouterr().out.rstrip().endswith("here")


def test_what_ends_a_process_is_json_too() -> None:
    code = (
        "import logging, sys\nfrom forebay.cacheruntime.logs import set_up_logs\n"
        "set_up_logs('handler', 'json', logging.StreamHandler(sys.stderr))\nraise KeyError('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["level"] == "CRITICAL"
    assert "KeyError" in json.loads(line)["exception"]


def test_log_format_of_the_environment() -> None:
    assert default_log_format({}) == "text"
    assert default_log_format({"FOREBAY_LOG_FORMAT": "json"}) == "json"
    with pytest.raises(UsageError, match="'yaml' is not one of text, json"):
        default_log_format({"FOREBAY_LOG_FORMAT": "yaml"})
