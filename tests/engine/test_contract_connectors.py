"""What Procrastinate documents of connectors holds on our App: in memory, exchanged, with their own JSON."""

from __future__ import annotations

import datetime
from typing import Any

import procrastinate
import pytest
from procrastinate import JobContext, exceptions, jobs
from procrastinate.testing import InMemoryConnector

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import FAST


async def test_tests_of_applications_use_the_in_memory_connector(dsn: str) -> None:
    app = procjobs.App(dsn)
    ran: list[int] = []

    @app.task(name="add", queueing_lock="ql", retry=procjobs.Retry(max_attempts=2, base=0))
    async def add(a: int) -> None:
        ran.append(a)

    memory = InMemoryConnector()
    with app.replace_connector(memory) as same:
        assert same is app
        async with app.open_async():
            job = await add.defer_async(a=1)
            with pytest.raises(exceptions.AlreadyEnqueued):
                await add.defer_async(a=2)
            assert [(row["task_name"], row["args"]) for row in memory.jobs.values()] == [("add", {"a": 1})]
            await app.run_worker_async(wait=False, install_signal_handlers=False)
            assert ran == [1]
            assert await app.job_manager.get_job_status_async(job) is jobs.Status.SUCCEEDED
    assert app.connector is not memory and app.job_manager.connector is app.connector


async def test_another_app_with_another_connector_shares_the_tasks(
    app: procjobs.App, databases: Any, template: str
) -> None:
    elsewhere = databases.make(template)
    ran: list[str] = []

    @app.task(name="t", pass_context=True)
    async def t(context: JobContext) -> None:
        ran.append(context.app.connector._pool_args["conninfo"])  # type: ignore[attr-defined]

    other = app.with_connector(procrastinate.PsycopgConnector(conninfo=elsewhere))
    assert isinstance(other, procjobs.App) and other.tasks is app.tasks
    async with other.open_async():
        await other.configure_task("t").defer_async()
        await other.job_manager.defer_job_async(jobs.Job(queue="default", lock=None, queueing_lock=None, task_name="t"))
        await other.run_worker_async(**{**FAST, "wait": False})
    assert set(ran) == {elsewhere}
    with Sql(elsewhere).connection as connection:
        assert connection.execute("select count(*) from procjobs.job_history").fetchone() in [(1,), (2,)]


async def test_replacing_the_connector_takes_the_worker_along(dsn: str, databases: Any, template: str) -> None:
    elsewhere = databases.make(template)
    app = procjobs.App(dsn)
    ran: list[int] = []

    @app.task(name="t")
    async def t() -> None:
        ran.append(1)

    with app.replace_connector(procrastinate.PsycopgConnector(conninfo=elsewhere)):
        async with app.open_async():
            await t.defer_async()
            await app.run_worker_async(**{**FAST, "wait": False})
    assert ran == [1]
    with Sql(elsewhere).connection as connection:
        assert connection.execute("select count(*) from procjobs.job_history").fetchone() == (1,)


async def test_an_application_brings_its_own_json(dsn: str, sql: Sql) -> None:
    import functools
    import json

    def encode(value: Any) -> Any:
        if isinstance(value, datetime.date):
            return {"__date__": value.isoformat()}
        raise TypeError

    def decode(value: dict[str, Any]) -> Any:
        return datetime.date.fromisoformat(value["__date__"]) if "__date__" in value else value

    app = procjobs.App(
        procrastinate.PsycopgConnector(
            conninfo=dsn,
            json_dumps=functools.partial(json.dumps, default=encode),
            json_loads=functools.partial(json.loads, object_hook=decode),
        )
    )
    seen: list[Any] = []

    @app.task(name="t")
    async def t(day: Any) -> None:
        seen.append(day)

    async with app.open_async():
        await t.defer_async(day=datetime.date(2031, 5, 1))
        await app.run_worker_async(**{**FAST, "wait": False})
    assert seen == [datetime.date(2031, 5, 1)]
