"""Logging set-up: one format for every process of the server, and the request that a line is about.

Lines tell of requests by id, sizes and times, never by what prompts or pictures contain.
"""

import logging
import sys
from contextvars import ContextVar
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that this task works for, or empty."""


def setup_logging(process: str, log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Sends this process's records to stderr.

    Args:
        process: Short name shown in every line, such as `front` or `engine 0`.
        log_format: Lines to read, or one JSON object a line with the same and all extra fields.
        level: Lowest level that is written.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json(process) if log_format == "json" else _text(process))
    handler.addFilter(_add_request_id)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _text(process: str) -> logging.Formatter:
    line = f"%(asctime)s %(levelname).1s {process}: %(message)s"
    return _TextFormatter(line, "%H:%M:%S")


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        """Puts the request's id behind the message."""
        name = getattr(record, "request_id", "")
        return super().formatMessage(record) + (f" [{name}]" if name else "")


def _json(process: str) -> logging.Formatter:
    return JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        static_fields={"process": process},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


def _add_request_id(record: logging.LogRecord) -> bool:
    if name := request_id.get():
        record.request_id = name
    return True
