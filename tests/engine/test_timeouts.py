"""Timeouts of jobs: coroutines are cancelled, processes killed, threads asked; all end as JobTimeout, by policy."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from datetime import timedelta

import pytest
from procrastinate import JobContext

import procjobs
from procjobs import JobTimeout, Retry, Snooze
from procjobs.engine import execution
from procjobs.engine.processes import Processes

TINY = 0.1


def burn(seconds: float) -> None:
    """CPU-bound; importable, for processes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def stubborn(seconds: float) -> None:
    """Ignores TERM: only KILL ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    burn(seconds)


def ends(sql):
    return sql("select outcome, error_class, error_message from procjobs.attempts order by id")


OVER = ("failed", "JobTimeout", "it ran longer than its timeout of 0.1 s")


async def test_a_coroutine_is_cancelled_and_the_job_fails_with_where_it_hung(app, drain, sql):
    @app.task(name="hang", timeout=TINY)
    async def hang():
        await asyncio.Event().wait()

    job = await hang.defer_async()
    began = time.monotonic()
    await drain()
    assert time.monotonic() - began < 5
    assert ends(sql) == [OVER]
    assert "in hang" in sql.one("select traceback from procjobs.attempts")
    assert sql("select state, attempts from procjobs.jobs where id = %s", job) == [("failed", 1)]


async def test_it_spends_an_attempt_and_is_retried_by_policy(app, drain, sql):
    runs = []

    @app.task(name="hang_once", timeout=timedelta(seconds=TINY), retry=Retry(max_attempts=3, base=0, jitter=False))
    async def hang_once():
        runs.append(1)
        if len(runs) == 1:
            await asyncio.Event().wait()

    job = await hang_once.defer_async()
    for _ in range(2):
        await drain()
    assert ends(sql) == [OVER]
    assert sql("select state, attempts from procjobs.jobs where id = %s", job) == [("succeeded", 2)]


@pytest.mark.parametrize(("on", "state"), [((JobTimeout,), "todo"), ((KeyError,), "failed")])
async def test_a_policy_may_name_it(app, drain, sql, on, state):
    @app.task(name="hang", timeout=TINY, retry=Retry(max_attempts=2, base=3600, on=on, jitter=False))
    async def hang():
        await asyncio.Event().wait()

    await hang.defer_async()
    await drain()
    assert sql.one("select status::text from procjobs.jobs") == state


async def test_a_process_is_terminated(app, drain, sql):
    app.task(name="burn", execution="process", timeout=TINY)(burn)
    job = await app.configure_task("burn").defer_async(seconds=60)
    await drain()
    assert ends(sql) == [OVER]
    assert sql.one("select status::text from procjobs.jobs where id = %s", job) == "failed"


async def test_a_process_that_ignores_that_is_killed(app, drain, sql, monkeypatch):
    monkeypatch.setattr(execution, "Processes", lambda size: Processes(size, grace=0.2))
    app.task(name="stubborn", execution="process", timeout=2.0)(stubborn)
    await app.configure_task("stubborn").defer_async(seconds=60)
    began = time.monotonic()
    await drain()
    assert time.monotonic() - began < 20
    assert [end[1] for end in ends(sql)] == ["JobTimeout"]


@pytest.mark.parametrize("ending", ["returns", "raises", "snoozes"])
async def test_a_thread_is_asked_and_its_job_fails_whatever_comes_of_it(app, drain, sql, ending):
    seen = []

    @app.task(name="loop", pass_context=True, timeout=TINY)
    def loop(context: JobContext):
        while not context.should_abort():
            time.sleep(0.01)
        reason = context.abort_reason()
        seen.append(reason and reason.value)
        if ending == "raises":
            raise LookupError("half done")
        return Snooze(60) if ending == "snoozes" else "done"

    await loop.defer_async()
    await drain()
    assert seen == ["timeout"]
    assert ends(sql) == [OVER]


async def test_a_thread_that_ignores_it_is_named_in_the_log(app, working, sql, eventually, monkeypatch, caplog):
    monkeypatch.setattr(execution, "_PATIENCE", 0.1)
    release = threading.Event()

    @app.task(name="deaf", timeout=TINY)
    def deaf():
        release.wait(30)

    job = await deaf.defer_async()
    with caplog.at_level(logging.WARNING, "procjobs.worker"):
        async with working():
            await eventually(lambda: any(f"job {job} (deaf) still runs" in line for line in caplog.messages))
            assert ends(sql) == []  # it has not ended
            release.set()
            await eventually(lambda: ends(sql) == [OVER])


async def test_one_that_swallows_its_cancellation_has_timed_out_too(app, drain, sql):
    @app.task(name="swallow", timeout=TINY)
    async def swallow():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "fine"

    await swallow.defer_async()
    await drain()
    assert ends(sql) == [OVER]


async def test_a_job_that_is_quick_enough_knows_nothing_of_it(app, drain, sql):
    @app.task(name="quick", timeout=60)
    async def quick():
        await asyncio.sleep(0)

    job = await quick.defer_async()
    await drain()
    assert sql("select state, note from procjobs.jobs where id = %s", job) == [("succeeded", None)]


async def test_a_setting_goes_before_the_code_at_once(app, working, sql, eventually):
    @app.task(name="hang", timeout=3600)
    async def hang():
        await asyncio.Event().wait()

    async with working():
        await eventually(lambda: sql("select 1 from procjobs.tasks where name = 'hang'"))
        sql("select procjobs.set_task('hang', timeout => '100 ms')")
        await hang.defer_async()
        await eventually(lambda: ends(sql) == [OVER])


async def test_a_person_who_asked_first_has_the_say(app, working, sql, eventually):
    started = asyncio.Event()

    @app.task(name="slow", pass_context=True, timeout=0.5)
    def slow(context):
        loop.call_soon_threadsafe(started.set)
        while not context.should_abort():
            time.sleep(0.01)
        time.sleep(0.6)  # past the timeout
        raise LookupError("stopped")

    loop = asyncio.get_running_loop()
    job = await slow.defer_async()
    async with working():
        await started.wait()
        sql("select procjobs.cancel(%s, 'enough')", job)
        await eventually(lambda: sql.one("select status::text from procjobs.jobs") == "failed")
    assert [end[1] for end in ends(sql)] == ["LookupError"]


async def test_a_cancel_while_it_times_out_means_no_retry(app, working, sql, eventually):
    asked, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @app.task(name="slow", pass_context=True, timeout=TINY, retry=Retry(max_attempts=5))
    def slow(context):
        while not context.should_abort():
            time.sleep(0.01)
        loop.call_soon_threadsafe(asked.set)
        go_on.wait(30)

    job = await slow.defer_async()
    async with working():
        await asked.wait()
        sql("select procjobs.cancel(%s)", job)
        go_on.set()
        await eventually(lambda: sql.one("select status::text from procjobs.jobs") == "failed")


async def test_shutdown_does_not_give_back_what_has_timed_out(app, working, sql, eventually):
    asked, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @app.task(name="slow", pass_context=True, timeout=TINY)
    def slow(context):
        while not context.should_abort():
            time.sleep(0.01)
        loop.call_soon_threadsafe(asked.set)
        go_on.wait(30)

    await slow.defer_async()
    async with working(shutdown_graceful_timeout=0.0) as worker:
        await asked.wait()
        worker.cancel()
        await eventually(lambda: sql.one("select draining_at is not null from procjobs.worker_state"))
        go_on.set()
        await asyncio.wait([worker])
    assert ends(sql) == [OVER]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), timedelta(days=5000)])
def test_a_timeout_that_is_none_is_refused(timeout):
    app = procjobs.App("")
    with pytest.raises(ValueError, match="timeout="):
        app.task(name="x", timeout=timeout)
