"""Lines of the log, for people and for machines."""

import json
import logging

import pytest

from lightvl.errors import StartupError
from lightvl.utils.env import log_format
from lightvl.utils.log import request_id, setup_logging


@pytest.fixture(autouse=True)
def _root_logger() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_names_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("front")
    logging.getLogger("x").info("before")
    token = request_id.set("abc")
    logging.getLogger("x").warning("during %d", 1)
    request_id.reset(token)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" I front: before")
    assert second.endswith(" W front: during 1 [abc]")


def test_json_lines_carry_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("engine 0", "json")
    token = request_id.set("abc")
    fields = {"path": "/generate", "status": 200}
    logging.getLogger("x").info("%(path)s done\n", fields, extra=fields)
    request_id.reset(token)
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry.pop("time")
    assert entry == {
        "level": "INFO",
        "logger": "x",
        "message": "/generate done\n",
        "path": "/generate",
        "process": "engine 0",
        "request_id": "abc",
        "status": 200,
    }


def test_the_format_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTVL_LOG_FORMAT", "json")
    assert log_format() == "json"
    monkeypatch.setenv("LIGHTVL_LOG_FORMAT", "xml")
    with pytest.raises(StartupError, match="expected text or json"):
        log_format()
