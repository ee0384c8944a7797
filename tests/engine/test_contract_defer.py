"""Procrastinate's documented ways to defer, configure and lock jobs hold on our App."""

from __future__ import annotations

import datetime

import procrastinate
import psycopg
import pytest
from procrastinate import exceptions, jobs

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import Drain
from tests.engine.fleet import job_row


async def test_defer_in_every_way(app: procjobs.App, drain: Drain) -> None:
    results: list[int] = []

    @app.task(queue="sums", name="add")
    async def add(a: int, b: int = 10) -> None:
        results.append(a + b)

    first = await add.defer_async(a=1, b=2)
    batch = await add.batch_defer_async({"a": 2, "b": 2}, {"a": 3})
    by_name = await app.configure_task("add").defer_async(a=4, b=2)
    configured = await add.configure(task_kwargs={"a": 0, "b": 7}).defer_async(a=5)
    assert [first, *batch, by_name, configured] == list(range(first, first + 5))
    await drain()
    assert sorted(results) == [3, 4, 6, 12, 13]
    assert await app.job_manager.get_job_status_async(configured) is jobs.Status.SUCCEEDED
    await add(20, 2)  # calling it calls it
    assert results[-1] == 22


def test_defer_in_every_way_without_a_loop(dsn: str, sql: Sql) -> None:
    for connector in (procrastinate.PsycopgConnector(conninfo=dsn), procrastinate.SyncPsycopgConnector(conninfo=dsn)):
        app = procjobs.App(connector=connector)

        @app.task(name="add")
        def add(a: int) -> None:
            pass

        with app.open():
            assert app.check_connection()
            first = add.defer(a=1)
            second, third = add.configure(lock="l", schedule_in={"hours": 1}).batch_defer({"a": 2}, {"a": 3})
            assert second == first + 1 and third == first + 2
            assert app.job_manager.get_job_status(third) is jobs.Status.TODO
            assert app.job_manager.cancel_job_by_id(third)
            with pytest.raises(exceptions.AlreadyEnqueued):
                add.configure(queueing_lock="ql").batch_defer({"a": 4}, {"a": 5})
    assert sql.one("select count(*) from procrastinate_jobs where args = '{\"a\": 4}'") == 0


async def test_defer_within_a_transaction_of_ones_own(app: procjobs.App, dsn: str, sql: Sql) -> None:
    @app.task(name="noop")
    async def noop() -> None:
        pass

    async with await psycopg.AsyncConnection.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        await noop.configure(connection=connection).defer_async()
        assert sql.one("select count(*) from procrastinate_jobs") == 0
        await connection.rollback()
        job = await noop.configure(connection=connection).defer_async()
        await connection.commit()
    assert sql("select id from procrastinate_jobs") == [(job,)]


async def test_configure_options_reach_the_job(app: procjobs.App, sql: Sql) -> None:
    @app.task(name="noop", queue="mail", priority=3, lock="task lock", queueing_lock="task ql", aliases=["old_name"])
    async def noop(a: int = 0) -> None:
        pass

    columns = ("queue_name", "priority", "lock", "queueing_lock", "args", "scheduled_at")
    assert job_row(sql, await noop.defer_async(), *columns) == ("mail", 3, "task lock", "task ql", {}, None)
    at = datetime.datetime(2031, 5, 1, 12, tzinfo=datetime.UTC)
    job = await noop.configure(
        queue="other", priority=-5, lock="l", queueing_lock="ql", schedule_at=at, task_kwargs={"a": 1}
    ).defer_async()
    assert job_row(sql, job, *columns) == ("other", -5, "l", "ql", {"a": 1}, at)
    job = await noop.configure(schedule_in={"minutes": 5}, queueing_lock="ql2").defer_async()
    (due,) = job_row(sql, job, "extract(epoch from scheduled_at - now())::float")
    assert 290 < due <= 300
    with pytest.raises(ValueError, match="schedule_at and schedule_in"):
        noop.configure(schedule_at=at, schedule_in={"minutes": 5})
    with pytest.raises(ValueError, match="aware"):
        await noop.configure(schedule_at=at.replace(tzinfo=None)).defer_async()


async def test_a_queueing_lock_admits_one_waiting_job(app: procjobs.App, drain: Drain, sql: Sql) -> None:
    @app.task(name="noop", queueing_lock="only one")
    async def noop() -> None:
        pass

    await noop.defer_async()
    for again in (noop.defer_async(), noop.batch_defer_async({}), app.configure_task("noop").defer_async()):
        with pytest.raises(exceptions.AlreadyEnqueued, match="only one"):
            await again
    with pytest.raises(exceptions.AlreadyEnqueued):
        await noop.configure(queueing_lock="another").batch_defer_async({}, {})
    assert sql.one("select count(*) from procrastinate_jobs") == 1
    await drain()
    assert await noop.defer_async()


async def test_an_unknown_task_can_be_deferred_by_its_name_unless_one_says_no(app: procjobs.App, sql: Sql) -> None:
    job = await app.configure_task("elsewhere.task", queue="q", lock="l").defer_async(anything=[1, 2])
    assert job_row(sql, job, "task_name", "queue_name", "lock", "args") == (
        "elsewhere.task",
        "q",
        "l",
        {"anything": [1, 2]},
    )
    with pytest.raises(exceptions.TaskNotFound):
        app.configure_task("elsewhere.task", allow_unknown=False)
