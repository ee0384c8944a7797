"""Cancelling what runs: what the worker does with a request, sentence by sentence."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from procjobs import Retry
from procjobs.engine import execution
from procjobs.engine.processes import Processes


def stubborn(seconds: float) -> None:
    """Ignores TERM: only KILL ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def status(sql, job_id):
    return sql.one("select status::text from procjobs.jobs where id = %s", job_id)


async def test_a_process_that_ignores_term_is_killed_after_the_grace(app, working, sql, eventually, monkeypatch):
    monkeypatch.setattr(execution, "Processes", lambda size: Processes(size, grace=0.2))
    app.task(name="stubborn", execution="process")(stubborn)
    job = await app.configure_task("stubborn").defer_async(seconds=120)
    async with working():
        await eventually(lambda: status(sql, job) == "doing")
        sql("select procjobs.cancel(%s)", job)
        await eventually(lambda: status(sql, job) == "aborted", timeout=30)


async def test_one_that_fails_after_a_request_is_not_retried(app, working, sql, eventually):
    @app.task(name="fragile", pass_context=True, retry=Retry(max_attempts=5, base=0))
    def fragile(context):
        while not context.should_abort():
            time.sleep(0.01)
        raise LookupError("broken by the request")

    job = await fragile.defer_async()
    async with working():
        await eventually(lambda: status(sql, job) == "doing")
        sql("select procjobs.cancel(%s, 'enough')", job)
        await eventually(lambda: status(sql, job) == "failed")
    assert sql("select attempt, error_class from procjobs.attempts") == [(1, "LookupError")]


@pytest.mark.parametrize("mode", ["archive", "keep"])
async def test_one_that_finishes_first_stays_succeeded_and_says_so(app, working, sql, eventually, mode):
    release = threading.Event()

    @app.task(name="deaf")
    def deaf():
        release.wait(30)
        return "kept"

    job = await deaf.defer_async()
    async with working(finished_jobs=mode):
        await eventually(lambda: status(sql, job) == "doing")
        assert sql.one("select procjobs.cancel(%s, 'enough')", job) == "requested"
        release.set()
        await eventually(lambda: status(sql, job) == "succeeded")
    assert sql("select note, result from procjobs.jobs") == [("a cancel request came too late", "kept")]


async def test_a_request_is_heard_by_the_heartbeat_when_no_notification_comes(app, working, sql, eventually):
    @app.task(name="endless")
    async def endless():
        await eventually(lambda: False, timeout=60)

    job = await endless.defer_async()
    async with working(listen_notify=False, abort_job_polling_interval=3600.0):
        await eventually(lambda: status(sql, job) == "doing")
        sql("select procjobs.cancel(%s)", job)
        await eventually(lambda: status(sql, job) == "aborted")
