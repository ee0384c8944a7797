"""What a worker does with jobs: runs them where they belong, ends them as they end, and leaves cleanly."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from datetime import timedelta

import pytest
from procrastinate import JobContext

import procjobs
from procjobs import Cancel, Discard, Retry, ShutdownIncomplete, Snooze


def burn(seconds: float) -> int:
    """CPU-bound; importable, for processes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return os.getpid()


def die() -> None:
    os._exit(3)


def complain(word: str) -> None:
    raise LookupError(f"no {word}")


def status(sql, job_id):
    return sql.one("select status::text from procjobs.jobs where id = %s", job_id)


async def test_async_tasks_run_on_the_loop_and_sync_tasks_in_threads(app, drain):
    where = {}

    @app.task(name="on_loop")
    async def on_loop():
        where["async"] = threading.current_thread()

    @app.task(name="in_thread")
    def in_thread():
        where["sync"] = threading.current_thread()

    await on_loop.defer_async()
    await in_thread.defer_async()
    await drain()
    assert where["async"] is threading.main_thread()
    assert where["sync"] is not threading.main_thread() and where["sync"].daemon


async def test_as_many_sync_tasks_run_at_once_as_the_concurrency_says(app, drain):
    together = threading.Barrier(8, timeout=10)

    @app.task(name="meet")
    def meet():
        together.wait()

    await meet.batch_defer_async(*[{} for _ in range(8)])
    await drain(concurrency=8)
    assert not together.broken


async def test_context_variables_of_one_job_are_not_seen_by_the_next(app, drain):
    seen = []
    variable = contextvars.ContextVar("variable", default="clean")

    @app.task(name="look")
    async def look():
        seen.append(variable.get())
        variable.set("dirty")

    await look.batch_defer_async({}, {}, {})
    await drain(concurrency=1)
    assert seen == ["clean"] * 3


async def test_cpu_tasks_run_in_another_process(app, drain, sql):
    task = app.task(name="burn", execution="process")(burn)
    job = await task.defer_async(seconds=0.01)
    await drain()
    assert status(sql, job) == "succeeded"


async def test_an_error_in_a_process_keeps_its_class_message_and_traceback(app, drain, sql):
    task = app.task(name="complain", execution="process")(complain)
    job = await task.defer_async(word="way")
    await drain()
    ((kind, message, trace),) = sql(
        "select error_class, error_message, traceback from procjobs.job_attempts where job_id = %s", job
    )
    assert (kind, message) == ("LookupError", "no way")
    assert "in complain" in trace


async def test_a_process_that_dies_is_a_crash_and_other_jobs_go_on(app, drain, sql):
    dying = app.task(name="die", execution="process")(die)
    living = app.task(name="burn", execution="process")(burn)
    job = await dying.defer_async()
    others = await living.batch_defer_async({"seconds": 0.01}, {"seconds": 0.01})
    await drain()
    ((crashes, waiting, attempts),) = sql(
        "select pj_crashes, pj_waits_for, attempts from procrastinate_jobs where id = %s", job
    )
    assert (crashes, waiting, attempts) == (1, "time", 0)
    assert {status(sql, other) for other in others} == {"succeeded"}


async def test_cancelling_a_process_job_kills_the_process(app, working, sql, eventually):
    task = app.task(name="burn", execution="process")(burn)
    job = await task.defer_async(seconds=600)
    async with working():
        await eventually(lambda: status(sql, job) == "doing")
        began = time.monotonic()
        assert sql.one("select procjobs.cancel(%s, 'enough')", job) == "requested"
        await eventually(lambda: status(sql, job) == "aborted", timeout=20)
    assert time.monotonic() - began < 20


async def test_a_process_task_cannot_take_the_context(app):
    with pytest.raises(ValueError, match="context"):
        app.task(name="x", execution="process", pass_context=True)


async def test_three_attempts_are_three_runs_with_the_waits_of_the_policy(app, drain, sql, eventually):
    @app.task(name="boom", retry=Retry(max_attempts=3, base=60, jitter=False))
    async def boom():
        raise RuntimeError("no luck")

    job = await boom.defer_async()
    waits = []
    for _ in range(3):
        await drain()
        ((retry_at, finished_at),) = sql(
            "select retry_at, finished_at from procjobs.job_attempts where job_id = %s order by id desc limit 1", job
        )
        waits.append(retry_at and round((retry_at - finished_at).total_seconds(), 3))
        if retry_at:
            sql("select procjobs.retry(%s)", job)
    assert waits == [60.0, 120.0, None]
    assert status(sql, job) == "failed"
    assert sql.one("select attempts from procrastinate_jobs where id = %s", job) == 3


async def test_an_error_that_the_policy_does_not_name_is_final(app, drain, sql):
    @app.task(name="picky", retry=Retry(max_attempts=5, base=0, on=(ConnectionError,)))
    async def picky():
        raise KeyError("not that one")

    job = await picky.defer_async()
    await drain()
    assert status(sql, job) == "failed"


async def test_a_limit_on_the_job_wins_over_the_task(app, drain, sql):
    @app.task(name="boom", retry=Retry(max_attempts=5, base=0, cap=0))
    async def boom():
        raise RuntimeError

    await app.register_tasks()
    job = sql.one("select procjobs.defer('boom', max_attempts => 2)")
    await drain()
    assert sql.one("select attempts from procrastinate_jobs where id = %s", job) == 2
    assert status(sql, job) == "failed"


async def test_snooze_spends_no_attempt(app, drain, sql):
    @app.task(name="later", retry=Retry(max_attempts=1))
    async def later():
        return Snooze(timedelta(hours=1))

    job = await later.defer_async()
    await drain()
    ((state, attempts, in_an_hour),) = sql(
        "select status::text, attempts, scheduled_at > now() + interval '59 minutes' "
        "from procrastinate_jobs where id = %s",
        job,
    )
    assert (state, attempts, in_an_hour) == ("todo", 0, True)


@pytest.mark.parametrize(
    ("verdict", "ended"), [(Discard("old news"), "cancelled"), (Cancel("changed my mind"), "aborted")]
)
async def test_a_task_may_end_its_job_with_a_reason(app, drain, sql, verdict, ended):
    @app.task(name="verdict")
    async def decide():
        return verdict

    job = await decide.defer_async()
    await drain()
    assert sql("select status::text, note from procjobs.jobs where id = %s", job) == [(ended, verdict.reason)]


async def test_whatever_a_job_raises_the_worker_lives(app, drain, sql):
    class Nasty(BaseException):
        def __str__(self):
            raise RuntimeError("even this fails")

    @app.task(name="nasty")
    async def nasty(kind: str):
        if kind == "exit":
            raise SystemExit(7)
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "cancelled":
            raise asyncio.CancelledError
        if kind == "nul":
            raise ValueError("a\x00b\ud800")
        raise Nasty

    @app.task(name="fine")
    async def fine():
        pass

    jobs = [await nasty.defer_async(kind=kind) for kind in ("exit", "interrupt", "cancelled", "nul", "nasty")]
    good = await fine.defer_async()
    await drain()
    assert [status(sql, job) for job in jobs] == ["failed"] * 5
    assert status(sql, good) == "succeeded"


async def test_a_cancelled_async_job_stops_and_is_not_retried(app, working, sql, eventually):
    stopped = asyncio.Event()

    @app.task(name="endless", retry=Retry(max_attempts=5, base=0))
    async def endless():
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    job = await endless.defer_async()
    async with working():
        await eventually(lambda: status(sql, job) == "doing")
        assert sql.one("select procjobs.cancel(%s, 'wrong customer')", job) == "requested"
        await asyncio.wait_for(stopped.wait(), 5)
        await eventually(lambda: status(sql, job) == "aborted")
    assert sql.one("select note from procjobs.jobs where id = %s", job) == "wrong customer"


async def test_a_sync_job_sees_the_request_in_its_context(app, working, sql, eventually):
    @app.task(name="polite", pass_context=True)
    def polite(context: JobContext):
        while not context.should_abort():
            time.sleep(0.01)
        from procrastinate.exceptions import JobAborted

        raise JobAborted

    job = await polite.defer_async()
    async with working():
        await eventually(lambda: status(sql, job) == "doing")
        sql("select procjobs.cancel(%s)", job)
        await eventually(lambda: status(sql, job) == "aborted")


async def test_a_job_that_ends_well_before_it_hears_of_the_request_stays_succeeded(app, working, sql, eventually):
    release = threading.Event()

    @app.task(name="deaf")
    def deaf():
        release.wait(10)

    job = await deaf.defer_async()
    async with working():
        await eventually(lambda: status(sql, job) == "doing")
        sql("select procjobs.cancel(%s)", job)
        release.set()
        await eventually(lambda: status(sql, job) == "succeeded")
    assert "too late" in sql.one("select note from procjobs.jobs where id = %s", job)


async def test_a_deferred_job_starts_at_once_by_notify_not_by_polling(app, working, sql, eventually):
    started = asyncio.Event()

    @app.task(name="quick")
    async def quick():
        started.set()

    async with working(fetch_job_polling_interval=600):
        await eventually(lambda: sql.one("select count(*) from procjobs.workers"))
        await eventually(
            lambda: sql.one("select count(*) from pg_stat_activity where application_name = 'procjobs listen'")
        )
        sql("select procjobs.defer('quick')")
        await asyncio.wait_for(started.wait(), 5)


async def test_a_job_due_soon_starts_when_it_is_due(app, working, sql, eventually):
    @app.task(name="soon")
    async def soon():
        pass

    async with working(fetch_job_polling_interval=600):
        await eventually(lambda: sql.one("select count(*) from procjobs.workers"))
        job = sql.one("select procjobs.defer('soon', scheduled_at => clock_timestamp() + interval '0.3 seconds')")
        await eventually(lambda: status(sql, job) == "succeeded")
    assert sql.one("select started_at >= scheduled_at from procjobs.job_history where id = %s", job)


async def test_without_notify_the_worker_still_polls(app, working, sql, eventually):
    @app.task(name="polled")
    async def polled():
        pass

    async with working(listen_notify=False, fetch_job_polling_interval=0.1):
        await eventually(lambda: sql.one("select count(*) from procjobs.workers"))
        job = sql.one("select procjobs.defer('polled')")
        await eventually(lambda: status(sql, job) == "succeeded")


async def test_jobs_on_one_lock_run_one_after_the_other_in_order(app, drain, sql):
    order = []
    running = 0

    @app.task(name="step")
    async def step(n: int):
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        order.append(n)
        running -= 1

    for n, priority in enumerate([0, 5, 0, 9]):
        await step.configure(lock="account", priority=priority).defer_async(n=n)
    await drain(concurrency=10)
    assert order == [3, 1, 0, 2]
    assert sql.one("select count(*) from procjobs.jobs where status <> 'succeeded'") == 0


async def test_stopping_waits_for_running_jobs_and_claims_no_more(app, working, sql, eventually):
    started, release = asyncio.Event(), asyncio.Event()

    @app.task(name="slow")
    async def slow():
        started.set()
        await release.wait()

    first = await slow.defer_async()
    async with working(concurrency=1) as worker:
        await eventually(started.is_set)
        worker.cancel()
        await eventually(lambda: sql.one("select draining_at is not null from procjobs.worker_state"))
        second = await slow.defer_async()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert status(sql, first) == "succeeded"
    assert status(sql, second) == "todo"
    assert sql.one("select stopped_at is not null from procjobs.worker_state")


async def test_jobs_that_outlive_the_soft_timeout_wait_again_with_their_attempt_and_without_an_error(
    app, working, sql, eventually
):
    started = asyncio.Event()

    @app.task(name="long")
    async def long():
        started.set()
        await asyncio.Event().wait()

    job = await long.defer_async()
    async with working(shutdown_graceful_timeout=0.1) as worker:
        await eventually(started.is_set)
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert sql("select status::text, attempts, pj_crashes, worker_id from procrastinate_jobs where id = %s", job) == [
        ("todo", 0, 0, None)
    ]
    assert sql("select outcome, error_class from procjobs.job_attempts where job_id = %s", job) == [("released", None)]


async def test_a_thread_that_ignores_everything_is_left_behind_with_an_error_and_rescued_without_a_crash(
    app, working, sql, eventually
):
    started, release = threading.Event(), threading.Event()

    @app.task(name="stubborn")
    def stubborn():
        started.set()
        release.wait(30)

    job = await stubborn.defer_async()
    try:
        async with working(shutdown_graceful_timeout=0.1, kill_timeout=0.2) as worker:
            await eventually(started.is_set)
            worker.cancel()
            with pytest.raises(ShutdownIncomplete, match="1 jobs"):
                await worker
        assert status(sql, job) == "doing"
        sql("select procjobs.rescue_jobs()")
        assert sql("select status::text, pj_crashes from procrastinate_jobs where id = %s", job) == [("todo", 0)]
    finally:
        release.set()


async def test_prefetched_jobs_are_given_back_on_shutdown(app, working, sql, eventually):
    release = asyncio.Event()

    @app.task(name="fast")
    async def fast():
        pass

    @app.task(name="hold")
    async def hold():
        await release.wait()

    async with working(concurrency=2) as worker:
        await fast.batch_defer_async(*[{} for _ in range(3000)])  # the rate rises, and with it what is held ahead
        await hold.batch_defer_async(*[{} for _ in range(50)])
        await eventually(
            lambda: sql.one("select count(*) from procrastinate_jobs where task_name = 'fast'") == 0, timeout=60
        )
        worker.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert sql.one("select count(*) from procrastinate_jobs where status = 'doing'") == 0
    assert sql.one("select count(*) from procjobs.job_attempts") == 0
    left, done = sql(
        "select (select count(*) from procrastinate_jobs where attempts = 0), "
        "(select count(*) from procjobs.job_history)"
    )[0]
    assert left + done == 3050


async def test_what_tasks_share_is_made_once_and_closed_with_the_worker(app, drain):
    made = []

    class Shared:
        closed = False

        async def close(self):
            self.closed = True

    @app.task(name="use", pass_context=True)
    async def use(context: JobContext):
        assert isinstance(context.app, procjobs.App)

        def factory():
            made.append(Shared())
            return made[-1]

        await context.app.resource("shared", factory)

    await use.batch_defer_async({}, {}, {})
    await drain()
    assert len(made) == 1 and made[0].closed


@pytest.mark.parametrize(("mode", "kept", "archived"), [("archive", 0, 1), ("keep", 1, 0), ("delete", 0, 0)])
async def test_finished_jobs_go_where_the_app_says(dsn, sql, mode, kept, archived):
    app = procjobs.App(dsn, finished_jobs=mode)

    @app.task(name="noop")
    async def noop():
        pass

    async with app.open_async():
        await noop.defer_async()
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert sql.one("select count(*) from procrastinate_jobs where status = 'succeeded'") == kept
    assert sql.one("select count(*) from procjobs.job_history") == archived


async def test_the_worker_says_how_to_migrate_when_the_schema_is_missing(empty_dsn):
    app = procjobs.App(empty_dsn)
    async with app.open_async():
        with pytest.raises(procjobs.errors.MigrationError) as refused:
            await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert "procjobs migrate" in (refused.value.hint or "")
