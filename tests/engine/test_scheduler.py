"""The scheduler: what a fleet needs to go on while no worker is there, or none has time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from procrastinate import testing
from psycopg.conninfo import make_conninfo

import procjobs
from procjobs.engine.scheduler import Scheduler
from procjobs.errors import MigrationError, SettingsError
from tests.conftest import Sql
from tests.engine.fleet import Fleet

Keeping = Callable[..., AbstractAsyncContextManager[list["asyncio.Task[None]"]]]


@pytest.fixture
def keeping(app: procjobs.App) -> Keeping:
    """`async with keeping(2):` runs schedulers of `app` and stops them after."""

    @asynccontextmanager
    async def run(count: int = 1) -> AsyncIterator[list[asyncio.Task[None]]]:
        schedulers = [Scheduler(app, app.target) for _ in range(count)]
        tasks = [asyncio.create_task(scheduler.run()) for scheduler in schedulers]
        try:
            yield tasks
        finally:
            for scheduler in schedulers:
                scheduler.stop()
            await asyncio.wait_for(asyncio.gather(*tasks), 10)

    return run


async def test_it_registers_the_tasks_of_the_app(
    app: procjobs.App, keeping: Keeping, sql: Sql, eventually: Any
) -> None:
    @app.task(name="later")
    def later() -> None: ...

    async with keeping():
        await eventually(lambda: sql("select 1 from procjobs.tasks where name = 'later'"))
    assert sql("select * from procjobs.workers") == [], "it runs no job: nobody may wait for it to"


async def test_a_job_that_becomes_due_is_made_ready(keeping: Keeping, sql: Sql, eventually: Any) -> None:
    fleet = Fleet(sql)
    fleet.worker()
    job = fleet.defer(scheduled_at=0.3)
    async with keeping():
        await eventually(lambda: sql("select 1 from procrastinate_jobs where id = %s and pj_waits_for is null", job))


async def test_the_jobs_of_a_dead_worker_are_rescued(keeping: Keeping, sql: Sql, eventually: Any) -> None:
    fleet = Fleet(sql)
    worker = fleet.worker(beat=0.1, lease=0.3)
    job = fleet.defer()
    fleet.claim(worker)
    async with keeping():
        await eventually(lambda: sql("select crashes from procjobs.jobs where id = %s", job) == [(1,)])


async def test_two_of_them_fire_each_slot_once(app: procjobs.App, keeping: Keeping, sql: Sql, eventually: Any) -> None:
    @app.periodic(cron="* * * * * *")
    @app.task(name="tick")
    async def tick(timestamp: int) -> None: ...

    async with keeping(2):
        await eventually(lambda: sql.one("select count(*) from procrastinate_jobs") >= 3)
    slots = [slot for (slot,) in sql("select (args ->> 'timestamp')::bigint from procrastinate_jobs order by 1")]
    assert slots == list(range(slots[0], slots[0] + len(slots)))


async def test_it_goes_on_after_its_connections_were_cut(keeping: Keeping, sql: Sql, eventually: Any) -> None:
    fleet = Fleet(sql)
    async with keeping() as (task,):
        cut = (
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'procjobs scheduler' and datname = current_database()"
        )
        await eventually(lambda: sql(cut))
        job = fleet.defer(scheduled_at=0.1)
        await eventually(lambda: sql("select 1 from procrastinate_jobs where id = %s and pj_waits_for is null", job))
        assert not task.done()


async def test_a_database_that_was_not_migrated_is_refused(empty_dsn: str) -> None:
    app = procjobs.App(empty_dsn)
    with pytest.raises(MigrationError, match="no procjobs schema"):
        await Scheduler(app, app.target).run()


async def test_an_app_in_memory_has_no_time_to_keep() -> None:
    with pytest.raises(SettingsError, match="InMemoryConnector"):
        await procjobs.App(testing.InMemoryConnector()).run_scheduler_async()


async def test_stopped_while_the_database_is_away_it_ends(dsn: str) -> None:
    app = procjobs.App(make_conninfo(dsn, port=1))
    scheduler = Scheduler(app, app.target)
    running = asyncio.create_task(scheduler.run())
    done, _ = await asyncio.wait([running], timeout=0.2)
    assert not done, "an outage is waited for"
    scheduler.stop()
    await asyncio.wait_for(running, 10)
