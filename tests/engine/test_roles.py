"""A producer and a worker that have their own role and nothing else do their whole work with it."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

import procjobs
from procjobs.errors import DatabaseError
from tests.conftest import with_user
from tests.engine.conftest import FAST


def login(sql, dsn: str, role: str) -> str:
    """A DSN of a new user that is a member of `role` alone."""
    user = f"login_of_{role}_{sql.one('select current_database()')}"
    sql(f'create role "{user}" login in role {role}')
    return with_user(dsn, user)


async def test_a_job_goes_its_whole_way_with_restricted_roles(dsn, sql, eventually):
    producer_app = procjobs.App(login(sql, dsn, "procjobs_producer"))
    worker_app = procjobs.App(login(sql, dsn, "procjobs_worker"))
    started = asyncio.Event()

    def define(app):
        async def work(n: int):
            if n == 1:
                raise RuntimeError("once")
            if n == 2:
                started.set()
                await asyncio.Event().wait()

        return app.task(name="work", retry=procjobs.Retry(max_attempts=2, base=0, cap=0))(work)

    define(worker_app)
    task = define(producer_app)
    async with producer_app.open_async(), worker_app.open_async():
        good, bad, endless = [await task.defer_async(n=n) for n in (0, 1, 2)]
        later = await task.configure(schedule_in={"seconds": 0.2}, lock="a").defer_async(n=0)
        worker = asyncio.create_task(worker_app.run_worker_async(**FAST))
        await asyncio.wait_for(started.wait(), 10)
        assert sql.one("select procjobs.cancel(%s)", endless) == "requested"
        wanted = {good: "succeeded", bad: "failed", endless: "aborted", later: "succeeded"}
        await eventually(
            lambda: dict(sql("select id, status::text from procjobs.jobs where id = any(%s)", list(wanted))) == wanted
        )
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert sql.one("select count(*) from procjobs.worker_state where stopped_at is not null") == 1


async def test_neither_can_move_the_clock(dsn, sql):
    for role in ("procjobs_producer", "procjobs_worker"):
        with psycopg.connect(login(sql, dsn, role), autocommit=True) as connection:
            connection.execute("set procjobs.now = '2000-01-01'")
            ((year,),) = connection.execute("select extract(year from procjobs.clock())::int")
            assert year > 2000
    with psycopg.connect(login(sql, dsn, "procjobs_owner"), autocommit=True) as connection:
        connection.execute("set procjobs.now = '2000-01-01'")
        assert connection.execute("select procjobs.clock() = '2000-01-01'").fetchone() == (True,)


async def test_neither_can_touch_a_table(dsn, sql):
    for role in ("procjobs_producer", "procjobs_worker"):
        async with await psycopg.AsyncConnection.connect(login(sql, dsn, role), autocommit=True) as connection:
            for statement in (
                "select * from public.procrastinate_jobs",
                "update public.procrastinate_jobs set status = 'todo'",
                "select * from procjobs.job_history",
                "delete from procjobs.worker_state",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await connection.execute(statement.encode())


async def test_a_worker_without_its_role_is_told_which_to_grant(dsn, sql):
    app = procjobs.App(login(sql, dsn, "procjobs_reader"))
    async with app.open_async():
        with pytest.raises(DatabaseError) as refused:
            await app.run_worker_async(**{**FAST, "wait": False})
    assert "procjobs_worker" in (refused.value.hint or "")
