"""Logs: one record a line, as text or JSON, and never a job's arguments."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from procrastinate.jobs import Job

from procjobs import logs

SECRET = "hunter2-canary"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def written(log_format: logs.LogFormat, *, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure("worker", level=level, log_format=log_format, stream=stream)
    return stream


def job() -> Job:
    return Job(
        id=7,
        queue="mail",
        lock=SECRET,
        queueing_lock=SECRET,
        task_name="send",
        task_kwargs={"password": SECRET},
    )


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_procrastinate_says_of_a_job_is_written_without_its_arguments(log_format: logs.LogFormat) -> None:
    stream = written(log_format)
    one = job()
    logging.getLogger("procrastinate.worker").info(
        f"Starting job {one.call_string}", extra={"action": "start_job", "job": one.log_context()}
    )
    logging.getLogger("procrastinate.jobs").info("Deferred 1 job", extra={"jobs": [one.log_context()]})

    assert "Starting job send[7]" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_json_says_which_job_and_what_was_done() -> None:
    stream = written("json")
    logging.getLogger("procrastinate.worker").info("x", extra={"action": "start_job", "job": job().log_context()})
    logging.getLogger("procjobs.worker").warning("y", extra={"job_id": 8, "took_ms": 1.5, "outcome": "failed"})

    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["action"], first["job_id"], first["task"], first["queue"]) == ("start_job", 7, "send", "mail")
    assert (second["job_id"], second["took_ms"], second["outcome"], second["level"]) == (8, 1.5, "failed", "warning")
    assert second["process"] == "worker" and second["at"].endswith("+00:00")


def test_an_extra_that_is_not_listed_is_left_out() -> None:
    stream = written("json")
    logging.getLogger("myapp").info("x", extra={"task_kwargs": {"a": SECRET}, "args_of_job": SECRET, "count": 3})

    assert SECRET not in stream.getvalue()
    assert json.loads(stream.getvalue())["count"] == 3


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_message_cannot_forge_a_second_record_or_move_a_cursor(log_format: logs.LogFormat) -> None:
    stream = written(log_format)
    logging.getLogger("myapp").info("mail\n12:00:00 worker INFO forged \x1b[2J\u2028")

    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_error_brings_its_traceback(log_format: logs.LogFormat) -> None:
    stream = written(log_format)
    try:
        raise LookupError("not there")
    except LookupError:
        logging.getLogger("myapp").exception("could not")

    assert "LookupError: not there" in stream.getvalue()
    if log_format == "json":
        assert json.loads(stream.getvalue())["error"] == "LookupError"


def test_configuring_again_replaces_the_first_and_keeps_what_others_set() -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    first = written("text")
    second = written("text")
    logging.getLogger("myapp").info("once")

    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
    assert other in logging.getLogger().handlers


def test_the_level_holds_and_chatty_libraries_are_quiet_unless_debugging() -> None:
    stream = written("text", level="info")
    logging.getLogger("myapp").debug("fine detail")
    logging.getLogger("alembic.runtime").info("chatter")
    assert stream.getvalue() == ""

    stream = written("text", level="debug")
    logging.getLogger("alembic.runtime").info("chatter")
    assert "chatter" in stream.getvalue()
