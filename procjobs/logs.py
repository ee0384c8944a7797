"""Logs as text for people or as JSON lines for machines; job arguments appear in neither.

Procrastinate writes each job's arguments into its messages and extras. Here a message names a job by task and id
only, and of a record's extras just the fields listed below are written, so that a new extra cannot leak by accident.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, assert_never

__all__ = ["FIELDS", "JsonFormatter", "LogFormat", "TextFormatter", "configure", "one_line"]

LogFormat = Literal["text", "json"]

#: The extras that may be written. Anything else passed as `extra=` is left out.
FIELDS = (
    "action",
    "job_id",
    "task",
    "queue",
    "attempt",
    "outcome",
    "took_ms",
    "jobs",
    "worker",
    "worker_id",
    "retry_at",
    "sqlstate",
    "count",
    "child",
    "exit_code",
    # notification_metrics
    "seconds",
    "sent",
    "deferred",
    "refused",
    "unknown",
    "waiting",
    "p50_ms",
    "p95_ms",
    "methods",
    "breakers",
)
#: These may be objects: figures and states by name.
_OBJECTS = ("methods", "breakers")

#: How the fields of Procrastinate's own `job` extra are called here.
_JOB_FIELDS = {"id": "job_id", "task_name": "task", "queue": "queue", "attempts": "attempt"}

#: Libraries whose INFO tells nothing to whoever runs procjobs.
_QUIET = ("alembic", "aiosmtpd", "asyncio", "mail.log", "procrastinate.blueprints", "uvicorn")

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_SCALARS = (str, int, float, bool)


def one_line(text: str) -> str:
    r"""The text with control characters shown as \xNN: a record stays one line, and cannot move a cursor."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _jobs(record: logging.LogRecord) -> Iterator[Mapping[str, Any]]:
    for value in (getattr(record, "job", None), *(_list(getattr(record, "jobs", None)))):
        if isinstance(value, Mapping):
            yield value


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def message(record: logging.LogRecord) -> str:
    """The record's message with each job called `task[id]`, its arguments cut away."""
    text = record.getMessage()
    for job in _jobs(record):
        called = job.get("call_string")
        if isinstance(called, str) and called:
            text = text.replace(called, f"{job.get('task_name')}[{job.get('id')}]")
    return text


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """The record's extras that may be written, by name."""
    found: dict[str, Any] = {}
    jobs = list(_jobs(record))
    if len(jobs) == 1:
        found = {ours: jobs[0][theirs] for theirs, ours in _JOB_FIELDS.items() if jobs[0].get(theirs) is not None}
    for name in FIELDS:
        value = getattr(record, name, None)
        if name == "worker" and isinstance(value, Mapping):
            value = value.get("name")
        if isinstance(value, datetime):
            value = value.isoformat()
        if isinstance(value, _SCALARS) or (name in _OBJECTS and isinstance(value, dict)):
            found[name] = value
    return found


class TextFormatter(logging.Formatter):
    """`12:30:01 worker  INFO  message`; levels in colour on a terminal. Times are local."""

    _COLORS = ((logging.ERROR, "31"), (logging.WARNING, "33"), (logging.INFO, "32"), (logging.DEBUG, "2"))

    def __init__(self, name: str, *, color: bool = False) -> None:
        super().__init__()
        self._name = name
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<7}"
        if self._color:
            code = next((code for least, code in self._COLORS if record.levelno >= least), "2")
            level = f"\x1b[{code}m{level}\x1b[0m"
        at = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        line = f"{at} {self._name:<9} {level} {one_line(message(record))}"
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n  {one_line(text)}" for text in trace)  # indented: no line of it looks like a record
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at (RFC 3339, UTC), level, process, logger, message, the extras, error, traceback."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._name,
            "logger": record.name,
            "message": message(record),
            **fields(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            entry["error"] = record.exc_info[0].__name__
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(
    name: str, *, level: str = "INFO", log_format: LogFormat = "text", stream: TextIO | None = None
) -> logging.Handler:
    """Send every log record of this process to `stream` (standard error) in one format.

    name: which process this is (worker, web, up), written with each record.
    Calling it again replaces what it set before.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    match log_format:
        case "json":
            handler.setFormatter(JsonFormatter(name))
        case "text":
            handler.setFormatter(TextFormatter(name, color=stream.isatty() and not os.environ.get("NO_COLOR")))
        case _:
            assert_never(log_format)
    root = logging.getLogger()
    for old in [found for found in root.handlers if getattr(found, "_procjobs", False)]:
        root.removeHandler(old)
    handler._procjobs = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(level.upper())
    for quiet in _QUIET:
        logging.getLogger(quiet).setLevel(logging.NOTSET if level.lower() == "debug" else logging.WARNING)
    return handler
