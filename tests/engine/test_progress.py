"""How far a job has come: from coroutines, threads and processes, seldom enough, and only from who holds the lease."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from psycopg.errors import Diagnostic

import procjobs
from procjobs import progress
from tests.conftest import Sql
from tests.engine.fleet import Fleet
from tests.sql.conftest import refused as refused


def from_a_process(wait_for: str) -> None:
    """Importable, for processes."""
    import os
    import time

    progress(40, "half way")
    while not os.path.exists(wait_for):
        time.sleep(0.01)


def reported(sql: Sql) -> list[tuple[object, ...]]:
    return sql("select percent, message from procjobs.job_progress order by job_id")


async def test_from_a_coroutine_and_a_thread(app, working, sql, eventually):
    go, done = asyncio.Event(), threading.Event()

    @app.task(name="on_loop")
    async def on_loop():
        progress(40, "half way")
        await go.wait()

    @app.task(name="in_thread")
    def in_thread():
        progress(None, "reading")
        done.wait(30)

    await on_loop.defer_async()
    await in_thread.defer_async()
    async with working():
        await eventually(lambda: sorted(reported(sql), key=str) == [(40.0, "half way"), (None, "reading")])
        go.set()
        done.set()


async def test_from_a_process(app, working, sql, eventually, tmp_path):
    app.task(name="apart", execution="process")(from_a_process)
    await app.configure_task("apart").defer_async(wait_for=str(tmp_path / "go"))
    async with working():
        await eventually(lambda: reported(sql) == [(40.0, "half way")], timeout=30)
        (tmp_path / "go").touch()
        await eventually(lambda: sql("select 1 from procjobs.jobs where state = 'succeeded'"))


async def test_a_thousand_reports_are_two_or_three_writes_and_the_last_one_stays(app, working, sql, eventually):
    sql("create table writes (n int)")
    sql("grant all on writes to public")
    sql("""create function count_write() returns trigger language plpgsql as
        $$ begin insert into public.writes values (1); return null; end $$""")
    sql("create trigger count after insert or update on procjobs.job_progress execute function count_write()")
    go = asyncio.Event()

    @app.task(name="chatty")
    async def chatty():
        for n in range(1, 1000):
            progress(n / 10, f"page {n}")
        progress(100, "done")
        await go.wait()

    await chatty.defer_async()
    async with working():
        await eventually(lambda: reported(sql) == [(100.0, "done")])
        go.set()
    assert sql.one("select count(*) from writes") <= 3


async def test_the_newest_report_is_written_a_second_later(app, working, sql, eventually):
    go = asyncio.Event()

    @app.task(name="steps")
    async def steps():
        progress(10)
        await asyncio.sleep(0.3)
        progress(20)
        progress(30)
        await go.wait()

    await steps.defer_async()
    async with working():
        await eventually(lambda: reported(sql) == [(10.0, None)])
        await eventually(lambda: reported(sql) == [(30.0, None)])
        go.set()


def test_outside_a_job_it_does_nothing() -> None:
    progress(40, "half way")


@pytest.mark.parametrize("percent", [-1, 101, float("nan"), float("inf")])
def test_a_number_that_is_no_percentage_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent="):
        progress(percent)


async def test_what_cannot_be_stored_is_replaced(app, working, sql, eventually):
    go = asyncio.Event()

    @app.task(name="odd")
    async def odd():
        progress(5, "a\x00b\ud800" + "c" * 2000)
        await go.wait()

    await odd.defer_async()
    async with working():
        await eventually(lambda: reported(sql))
        go.set()
    assert reported(sql)[0][1] == "a\ufffdb?" + "c" * 996


# SQL


def test_only_the_current_lease_reports(sql: Sql) -> None:
    fleet = Fleet(sql)
    job = fleet.defer()
    worker = fleet.worker()
    (old,) = fleet.claim(worker)
    fleet.settle(old, "released")
    (new,) = fleet.claim(worker)
    report = "select procjobs.report_progress(%s, %s, %s, 'x')"
    assert sql.one(report, job, old.lease, 10) is False
    assert sql.one(report, job, new.lease, 20) is True
    assert sql.one(report, job, new.lease, 15) is True  # backwards is its own business
    fleet.finish(new)
    assert sql.one(report, job, new.lease, 30) is False
    assert reported(sql) == [(15.0, "x")]


def test_sql_refuses_what_is_no_percentage(sql: Sql, refused: Callable[..., Diagnostic]) -> None:
    refused("PJ009", "select procjobs.report_progress(1, 1, 101)")


def test_old_reports_are_forgotten_and_those_of_running_jobs_stay(sql: Sql) -> None:
    fleet = Fleet(sql)
    worker = fleet.worker()
    for _ in range(2):
        fleet.defer()
    over, running = fleet.claim(worker, 2)
    for claim in (over, running):
        sql.one("select procjobs.report_progress(%s, %s, 50)", claim.id, claim.lease)
    fleet.finish(over)
    assert sql.one("select procjobs.forget_progress()") == 0
    with fleet.at(fleet.later(8 * 86400)):
        assert sql.one("select procjobs.forget_progress()") == 1
    assert sql("select job_id from procjobs.job_progress") == [(running.id,)]


def test_it_is_a_public_name() -> None:
    assert procjobs.progress is progress
