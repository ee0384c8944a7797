"""What jobs, upgrades and unlucky moments do to one worker, and that it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import warnings

import pytest

import procjobs
from procjobs.db import Link, SyncLink, Target
from procjobs.engine.hand import Hand
from procjobs.engine.heartbeat import Heartbeat
from procjobs.engine.presence import Card, Presence
from procjobs.engine.supervision import sides, stop_signals
from procjobs.engine.worker import ShutdownIncomplete
from procjobs.errors import DatabaseError
from tests.engine.conftest import FAST
from tests.engine.fleet import Fleet


def status(sql, job):
    return sql.one("select status::text from procjobs.jobs where id = %s", job)


# -- jobs ----------------------------------------------------------------------------------------------------------


class Weird(ValueError):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("even this fails")


def fail_weirdly() -> None:
    raise Weird


def fail_with(name: str) -> None:
    raise {"KeyError": KeyError, "OSError": OSError}[name]("no")


def fork_and_terminate() -> None:
    """What multiprocessing.Pool does to its processes when it is done, where it forks."""
    heard, told = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads
        child = os.fork()
    if child == 0:
        os.write(told, b".")
        time.sleep(60)
        os._exit(0)
    os.read(heard, 1)  # before, Python would drop the signal as one of the parent's
    os.close(heard)
    os.close(told)
    os.kill(child, signal.SIGTERM)
    _, ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == -signal.SIGTERM


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_generator_function_fails_instead_of_succeeding_without_having_run(app, drain, sql, kind):
    if kind == "plain":

        @app.task(name="generate")
        def generate():
            yield 1
    else:

        @app.task(name="generate")
        async def generate():
            yield 1

    job = await generate.defer_async()
    await drain()
    assert status(sql, job) == "failed"
    (message,) = sql("select error_message from procjobs.job_attempts where job_id = %s", job)[0]
    assert "generator function" in message


async def test_an_error_that_cannot_be_shown_is_no_crash_of_its_process(app, drain, sql):
    app.task(name="weird", execution="process")(fail_weirdly)
    job = await app.tasks["weird"].defer_async()
    await drain()
    assert status(sql, job) == "failed"
    ends = sql("select outcome, error_class, error_message from procjobs.job_attempts where job_id = %s", job)
    assert ends == [("failed", "Weird", "(the exception could not be shown)")]


async def test_a_policy_for_some_errors_holds_for_tasks_in_processes_too(app, drain, sql):
    policy = procjobs.Retry(max_attempts=2, base=0, on=(LookupError,))
    app.task(name="fail", execution="process", retry=policy)(fail_with)
    named, other = [await app.tasks["fail"].defer_async(name=name) for name in ("KeyError", "OSError")]
    await drain()
    runs = "select job_id, count(*) from procjobs.job_attempts where outcome = 'failed' group by 1 order by 1"
    assert sql(runs) == [(named, 2), (other, 1)]


async def test_a_signal_to_a_process_that_a_job_forked_does_not_stop_the_worker(app, working, sql, eventually):
    app.task(name="pool")(fork_and_terminate)
    before = signal.getsignal(signal.SIGTERM)
    async with working(install_signal_handlers=True) as worker:
        jobs = [await app.tasks["pool"].defer_async() for _ in range(2)]
        await eventually(lambda: [status(sql, job) for job in jobs] == ["succeeded"] * 2, timeout=30)
        assert sql.one("select draining_at is null from procjobs.worker_state")
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(worker.done)
    assert signal.getsignal(signal.SIGTERM) is before


async def test_a_signal_stops_every_worker_of_a_process_and_leaves_the_handlers_as_they_were():
    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("application"))
    ours = signal.getsignal(signal.SIGTERM)
    try:
        first, second = stop_signals(lambda: heard.append("first")), stop_signals(lambda: heard.append("second"))
        with first:
            second.__enter__()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert sorted(heard) == ["first", "second"]
        heard.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert heard == ["second"]
        second.__exit__(None, None, None)
        heard.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["application"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ours is not before


def test_a_worker_in_a_thread_never_ends_the_process_of_its_host(dsn, eventually):
    """Not even where a coroutine ignores its cancellation; a worker that owns its process has to."""
    app = procjobs.App(dsn)
    ended: list[BaseException] = []
    began, go = threading.Event(), threading.Event()

    @app.task(name="stubborn")
    async def stubborn():
        began.set()
        while not go.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    async def work() -> None:
        async with app.open_async():
            await stubborn.defer_async()
            worker = asyncio.create_task(
                app.run_worker_async(
                    **{
                        **FAST,
                        "install_signal_handlers": True,
                        "shutdown_graceful_timeout": 0.1,
                        "kill_timeout": 0.1,
                    }
                )
            )
            await eventually(began.is_set)
            worker.cancel()
            try:
                await worker
            except BaseException as error:
                ended.append(error)
            go.set()

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    thread.join(30)
    assert [type(error) for error in ended] == [ShutdownIncomplete]


# -- the database --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["finish_jobs(bigint, bigint[], integer[], text, jsonb[], text[])",
                                      "settle_jobs(bigint, jsonb)"])  # fmt: skip
async def test_an_end_waits_while_an_upgrade_has_taken_its_function_away(app, working, sql, eventually, function):
    go = asyncio.Event()

    @app.task(name="work")
    async def work(fail: bool):
        await go.wait()
        if fail:
            raise ValueError

    fail = function.startswith("settle")
    async with working():
        jobs = [await work.defer_async(fail=fail) for _ in range(3)]
        await eventually(lambda: sql.one("select count(*) from procrastinate_jobs where status = 'doing'") == 3)
        sql(f"alter function procjobs.{function} rename to away")
        go.set()
        await eventually(lambda: not sql.one("select count(*) from procjobs.job_attempts") and worker_tried(sql))
        sql(f"alter function procjobs.away({function.partition('(')[2]} rename to {function.partition('(')[0]}")
        await eventually(lambda: {status(sql, job) for job in jobs} == {"failed" if fail else "succeeded"})
    classes = sql("select distinct error_class from procjobs.job_attempts")
    assert classes == ([("ValueError",)] if fail else [])


def worker_tried(sql):
    """Whether a worker's finishing connection is there and idle: it has asked and was refused."""
    return sql.one(
        "select exists (select from pg_stat_activity where application_name = 'procjobs finish' and state = 'idle')"
    )


async def test_a_side_that_waits_long_for_a_lock_says_so_in_one_line_and_goes_on(caplog):
    goes = asyncio.Event()

    async def side():
        if not caplog.records:
            raise DatabaseError("canceling statement due to lock timeout", sqlstate="55P03")
        goes.set()

    async with sides({"schedules": side}):
        await asyncio.wait_for(goes.wait(), 10)
    assert [(r.levelname, r.getMessage(), r.exc_info) for r in caplog.records] == [
        ("WARNING", "schedules waits for the database: canceling statement due to lock timeout", None)
    ]


async def test_a_connection_forgets_what_an_upgrade_has_changed(dsn, sql):
    """What it had prepared gives another row type now: PostgreSQL refuses it for ever on the same connection."""
    sql("create function public.answer() returns table (a int) language sql as 'select 1'")
    link, thread = Link(Target(dsn), "test"), SyncLink(Target(dsn), "test")
    for _ in range(8):
        assert await link.fetch("select * from public.answer()") == [(1,)]
        assert thread.fetch("select * from public.answer()") == [(1,)]
    sql("drop function public.answer()")
    sql("create function public.answer() returns table (a int, b int) language sql as 'select 1, 2'")
    with pytest.raises(DatabaseError, match="result type"):
        await link.fetch("select * from public.answer()")
    with pytest.raises(DatabaseError, match="result type"):
        thread.fetch("select * from public.answer()")
    assert await link.fetch("select * from public.answer()") == [(1, 2)]
    assert thread.fetch("select * from public.answer()") == [(1, 2)]
    await link.close()
    thread.close()


async def test_callers_at_once_open_one_connection(dsn, sql):
    link = Link(Target(dsn, {"application_name": "once"}), "once")
    await asyncio.gather(*(link.fetch("select 1") for _ in range(5)))
    assert sql.one("select count(*) from pg_stat_activity where application_name = 'once'") == 1
    await link.close()


async def test_a_timeout_too_short_for_many_jobs_is_long_enough_for_a_few(app, sql, eventually, working):
    """Claims and ends of many jobs would run into statement_timeout again and again."""

    @app.task(name="work")
    async def work():
        pass

    database = sql.one("select current_database()")
    sql("""create function slow() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.01); return null; end $$""")
    await work.batch_defer_async(*({} for _ in range(120)))
    sql("create trigger slow after update or delete on procrastinate_jobs for each row execute function slow()")
    sql(f"alter database {database} set statement_timeout = '400ms'")
    async with working(concurrency=100, update_heartbeat_interval=1.0, stalled_worker_timeout=10.0):
        await eventually(lambda: sql.one("select count(*) from procjobs.job_history") == 120, timeout=40)


def test_a_job_whose_claim_got_lost_while_its_last_end_was_on_its_way_is_given_back(sql):
    """The worker has the job in its hand, with the lease of the run before."""
    fleet = Fleet(sql)
    job = fleet.defer()
    worker = fleet.worker()
    (first,) = fleet.claim(worker)
    fleet.settle(first, "released")
    (second,) = fleet.claim(worker)
    release = "select procjobs.release_unknown(%s, %s, %s)"
    assert sql.one(release, worker, [job], [second.lease]) == 0
    assert sql.one(release, worker, [job], [first.lease]) == 1
    assert fleet.status(job) == "todo"


def test_a_worker_that_died_before_the_clock_was_set_back_is_found_dead(sql):
    fleet = Fleet(sql)
    dead, alive = fleet.worker(), fleet.worker()
    sql("update procjobs.worker_state set last_heartbeat = last_heartbeat + interval '1 hour'")
    sql("select procjobs.mark_dead_workers()")
    sql("select procjobs.heartbeat(%s)", alive)
    assert sql("select id from procjobs.worker_state where dead_at is not null") == []
    sql("update procjobs.worker_state set suspected_at = suspected_at - interval '1 minute' where id = %s", dead)
    sql("select procjobs.mark_dead_workers()")
    assert sql("select id from procjobs.worker_state where dead_at is not null") == [(dead,)]


def test_a_suspicion_from_before_the_clock_was_set_back_ripens(sql):
    fleet = Fleet(sql)
    worker = fleet.worker()
    sql(
        "update procjobs.worker_state set last_heartbeat = now() - interval '1 h', "
        "suspected_at = now() + interval '1 h'"
    )
    sql("select procjobs.mark_dead_workers()")
    assert sql.one("select suspected_at <= now() and dead_at is null from procjobs.worker_state where id = %s", worker)


# -- the heartbeat -------------------------------------------------------------------------------------------------


def test_a_heart_goes_on_beating_whatever_it_meets(dsn, sql, eventually, monkeypatch):
    worker = Fleet(sql).worker()
    heart = Heartbeat(Target(dsn), worker, 0.05, on_abort=lambda ids: None, on_dead=lambda: None)
    fetch, odd = SyncLink.fetch, iter([ValueError("odd"), [], MemoryError()])

    def broken(self, query, parameters=()):
        for what in odd:
            if isinstance(what, BaseException):
                raise what
            return what
        return fetch(self, query, parameters)

    monkeypatch.setattr(SyncLink, "fetch", broken)
    before = sql.one("select last_heartbeat from procjobs.worker_state")
    heart.start()
    try:
        eventually(lambda: sql.one("select last_heartbeat from procjobs.worker_state") > before)
    finally:
        heart.stop()


async def test_a_worker_that_registered_again_does_not_hear_of_its_former_death(dsn, sql):
    """The old heartbeat may be the last to know."""
    dead: list[int] = []
    link = Link(Target(dsn), "test")
    presence = Presence(
        Target(dsn), link, on_abort=lambda ids: None, on_dead=lambda: dead.append(1), on_silent=lambda s: None
    )
    card = Card("w", None, [], 1, 10.0, 30.0)
    await presence.register(card)
    first = presence._heartbeat
    await presence.register(card)
    second = presence._heartbeat
    assert first is not None and second is not None
    first._on_dead()
    await asyncio.sleep(0.01)
    assert dead == []
    second._on_dead()
    await asyncio.sleep(0.01)
    assert dead == [1]
    await asyncio.to_thread(second.stop)
    await asyncio.to_thread(first.stop)
    await link.close()


def test_a_hand_asks_for_fewer_jobs_while_claims_take_too_long():
    hand = Hand(100)
    assert hand.room() == 100
    hand.refused(100)
    assert hand.room() == 50
    hand.refused(1)
    assert hand.room() == 1
