"""Connectors of other libraries defer on our App: SQLAlchemy's, Django's, psycopg2's, and pools that one brings."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator
from typing import Any

import django
import procrastinate
import psycopg_pool
import pytest
import sqlalchemy
from django.conf import settings
from django.db import connections, transaction
from procrastinate import exceptions, jobs
from procrastinate.contrib.psycopg2 import Psycopg2Connector
from procrastinate.contrib.sqlalchemy import SQLAlchemyPsycopg2Connector
from psycopg.conninfo import conninfo_to_dict

import procjobs
from procjobs.errors import InvalidArguments
from tests.conftest import Sql
from tests.engine.conftest import FAST

AWKWARD: dict[str, Any] = {"per cent": "100% %s %(x)s", "text": "grüße", "list": [1, None, {"a": []}]}


def url_of(dsn: str) -> sqlalchemy.URL:
    parts: dict[str, Any] = conninfo_to_dict(dsn)
    return sqlalchemy.URL.create(
        "postgresql+psycopg2",
        username=parts["user"],
        password=parts.get("password"),
        database=parts["dbname"],
        query={"host": parts["host"], "port": str(parts["port"])},
    )


def add_task(app: procjobs.App) -> tuple[Any, list[Any]]:
    ran: list[Any] = []

    @app.task(name="t")
    def t(a: Any) -> None:
        ran.append(a)

    return t, ran


def defer_in_every_way(app: procjobs.App, t: Any) -> list[int]:
    """Defer three jobs that run at once and one for 2031, be refused twice, and ask for what was made."""
    assert app.check_connection()
    first = t.defer(a=AWKWARD)
    second, third = t.batch_defer({"a": 2}, {"a": 3})
    at = datetime.datetime(2031, 5, 1, 12, tzinfo=datetime.UTC)
    later = t.configure(queueing_lock="ql", lock="l", priority=4, schedule_at=at).defer(a=4)
    with pytest.raises(exceptions.AlreadyEnqueued, match="ql"):
        t.configure(queueing_lock="ql").defer(a=5)
    with pytest.raises(InvalidArguments, match="a is missing"):
        t.defer(b=5)
    manager = app.job_manager
    assert manager.get_job_status(first) is jobs.Status.TODO
    assert [job.id for job in manager.list_jobs()] == [first, second, third, later]
    (listed,) = manager.list_jobs(queueing_lock="ql")
    assert (listed.id, listed.lock, listed.priority, listed.scheduled_at) == (later, "l", 4, at)
    assert [queue["todo"] for queue in manager.list_queues()] == [4]
    assert manager.cancel_job_by_id(later) and manager.get_job_status(later) is jobs.Status.CANCELLED
    return [first, second, third]


def drain(dsn: str) -> list[Any]:
    app = procjobs.App(dsn)
    _, ran = add_task(app)
    app.run_worker(**{**FAST, "wait": False, "concurrency": 1})
    return ran


def test_sqlalchemy_with_an_engine_of_ones_own_and_its_transactions(dsn: str, sql: Sql) -> None:
    engine = sqlalchemy.create_engine(url_of(dsn))
    app = procjobs.App(connector=SQLAlchemyPsycopg2Connector())
    t, _ = add_task(app)
    app.open(engine)
    try:
        defer_in_every_way(app, t)
        with engine.connect() as connection:
            t.configure(connection=connection).defer(a="rolled back")
            connection.rollback()
            job = t.configure(connection=connection).defer(a="committed")
            assert app.job_manager.get_job_status(job, connection=connection) is jobs.Status.TODO
            assert not sql("select 1 from procrastinate_jobs where id = %s", job)
            connection.commit()
    finally:
        app.close()
        engine.dispose()
    assert drain(dsn) == [AWKWARD, 2, 3, "committed"]


def test_psycopg2(dsn: str) -> None:
    app = procjobs.App(connector=Psycopg2Connector(dsn=dsn))
    t, _ = add_task(app)
    with app.open():
        defer_in_every_way(app, t)
    assert drain(dsn) == [AWKWARD, 2, 3]


@pytest.fixture
def django_database(dsn: str) -> Iterator[None]:
    """Django, set up once a process, on the test's database."""
    parts: dict[str, Any] = conninfo_to_dict(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "USER": parts["user"],
        "PASSWORD": parts.get("password") or "",
        "HOST": parts["host"],
        "PORT": str(parts["port"]),
    }
    if not settings.configured:
        settings.configure(
            DATABASES={"default": database}, INSTALLED_APPS=["procrastinate.contrib.django"], USE_TZ=True
        )
        django.setup()
    connections["default"].settings_dict.update(database)
    yield
    connections.close_all()


@pytest.mark.usefixtures("django_database")
def test_django_within_its_transactions_and_on_a_worker_of_its_settings(sql: Sql) -> None:
    from procrastinate.contrib.django.django_connector import DjangoConnector
    from procrastinate.contrib.django.models import ProcrastinateJob

    app = procjobs.App(connector=DjangoConnector())
    t, ran = add_task(app)
    defer_in_every_way(app, t)
    with transaction.atomic():
        t.defer(a="rolled back")
        transaction.set_rollback(True)
    with transaction.atomic():
        job = t.defer(a="committed")
        assert not sql("select 1 from procrastinate_jobs where id = %s", job)
        assert ProcrastinateJob.objects.get(id=job).task_name == "t"

    async def in_a_loop() -> int:
        return int(await t.defer_async(a="async"))

    assert asyncio.run(in_a_loop()) > job
    connector: Any = app.connector
    with app.replace_connector(connector.get_worker_connector()):
        app.run_worker(**{**FAST, "wait": False, "listen_notify": False, "concurrency": 1})
    assert ran == [AWKWARD, 2, 3, "committed", "async"]


@pytest.mark.usefixtures("django_database")
def test_djangos_own_app_defers_and_works_on_our_tables(sql: Sql) -> None:
    from procrastinate.contrib.django.db_cleanup import DjangoApp
    from procrastinate.contrib.django.django_connector import DjangoConnector

    connector = DjangoConnector()
    stock = DjangoApp(connector=connector)
    ran: list[int] = []

    @stock.task(name="t")
    def t(a: int) -> None:
        ran.append(a)

    t.defer(a=1)
    t.batch_defer({"a": 2}, {"a": 3})
    with stock.replace_connector(connector.get_worker_connector()):
        stock.run_worker(wait=False, install_signal_handlers=False, listen_notify=False)
    assert ran == [1, 2, 3]
    assert sql("select status::text, count(*) from procjobs.jobs group by 1") == [("succeeded", 3)]


async def test_a_pool_of_ones_own_is_used_and_left_open(dsn: str) -> None:
    app = procjobs.App(connector=procrastinate.PsycopgConnector())
    t, ran = add_task(app)
    async with psycopg_pool.AsyncConnectionPool(dsn, open=False) as pool:
        async with app.open_async(pool):
            await t.defer_async(a=1)
            await app.run_worker_async(**{**FAST, "wait": False})
        assert ran == [1] and not pool.closed
    with psycopg_pool.ConnectionPool(dsn, open=True) as sync_pool:
        other = procjobs.App(connector=procrastinate.PsycopgConnector())
        with other.open(sync_pool):
            add_task(other)[0].defer(a=2)
        assert not sync_pool.closed
    assert await asyncio.to_thread(drain, dsn) == [2]


async def test_results_come_from_the_database_of_the_connector_in_place(
    dsn: str, databases: Any, template: str
) -> None:
    app = procjobs.App(dsn)

    @app.task(name="where")
    async def where() -> str:
        return str(conninfo_to_dict(app.target.conninfo)["dbname"])

    async def once() -> Any:
        job = await where.defer_async()
        await app.run_worker_async(**{**FAST, "wait": False})
        return await app.result(job, timeout=10)

    elsewhere = databases.make(template)
    async with app.open_async():
        assert await once() == conninfo_to_dict(dsn)["dbname"]
        before = await where.defer_async()
        with app.replace_connector(procrastinate.PsycopgConnector(conninfo=elsewhere)):
            async with app.open_async():
                assert await once() == conninfo_to_dict(elsewhere)["dbname"]
        await app.run_worker_async(**{**FAST, "wait": False})
        assert await app.result(before, timeout=10) == conninfo_to_dict(dsn)["dbname"]
