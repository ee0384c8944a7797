"""What tasks return is kept, and waited for: by NOTIFY where it comes through, by asking where it does not."""

from __future__ import annotations

import asyncio
import json
import pickle
from copy import deepcopy
from typing import Any

import psycopg
import pytest

import procjobs
from procjobs import Cancel, JobCancelled, JobFailed, JobId, JobNotOver, JobTimeout, Outcome
from procjobs.engine import results
from procjobs.engine.results import LARGEST_RESULT, encode_result, strict_dumps
from procjobs.errors import JobNotFound
from tests.conftest import with_user


def pair(n: int) -> Any:
    """Importable, for processes."""
    return [n, {"twice": 2 * n}]


def odd() -> Any:
    return {1, 2}


def settle() -> Any:
    return Cancel("not today")


VALUES = [0, False, "", [], {}, "grüße \\u0000 ok", 1.5, {"a": [None, True]}, 10**30]


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_a_result_comes_back_as_it_was(app, drain, sql, value):
    @app.task(name="give")
    async def give():
        return value

    job = await give.defer_async()
    await drain()
    assert await app.result(job, timeout=10) == value
    assert sql.one("select procjobs.job_result(%s)", job) == value
    assert sql("select state, note from procjobs.jobs where id = %s", job) == [("succeeded", None)]


async def test_a_deferred_job_is_waited_for_by_itself(app, drain):
    @app.task(name="give")
    async def give(n):
        return 1 / n

    jobs = [await give.defer_async(n=2), await give.configure(queue="q").defer_async(n=0)]
    jobs += await give.batch_defer_async({"n": 4})
    with pytest.raises(JobNotOver):
        await jobs[0].result(timeout=0.05)
    await drain()
    jobs.append(await app.throttle(give, {"n": 5}, key="k", period=60))
    await drain()
    assert await jobs[0].result(timeout=10) == 0.5
    with pytest.raises(JobFailed, match="ZeroDivisionError"):
        await jobs[1].result(timeout=10)
    assert (await jobs[1].wait()).status == "failed"
    assert [await job.result() for job in jobs[2:]] == [0.25, 0.2]


def test_a_job_id_that_travels_leaves_its_app_behind():
    async def nobody(job_id: int, timeout: float | None) -> Outcome:
        raise JobNotOver(job_id, timeout or 0)

    job = JobId.of(7, nobody)
    job.duplicate = True
    for copy in (pickle.loads(pickle.dumps(job)), deepcopy(job)):
        assert (copy, copy.duplicate, json.dumps(copy)) == (7, True, "7")
        with pytest.raises(RuntimeError, match=r"app\.wait_for"):
            copy.wait().send(None)


@pytest.mark.parametrize("mode", ["archive", "keep"])
async def test_wherever_finished_jobs_go_and_beside_those_without(app, drain, mode):
    @app.task(name="give")
    async def give(n):
        return n or None

    jobs = [await give.defer_async(n=n) for n in range(3)]
    await drain(finished_jobs=mode)
    assert [await app.result(job, timeout=10) for job in jobs] == [None, 1, 2]


async def test_from_threads_and_processes(app, drain):
    app.task(name="pair")(pair)
    app.task(name="apart", execution="process")(pair)
    jobs = [await app.configure_task(name).defer_async(n=3) for name in ("pair", "apart")]
    await drain()
    assert [await app.result(job, timeout=10) for job in jobs] == [[3, {"twice": 6}]] * 2


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "(a object) was not kept: it is not JSON"),
        (float("nan"), "(a float) was not kept: it is not JSON"),
        ("\ud800", "(a str) was not kept: it is not JSON"),
        ("x\x00", "it holds a NUL character"),
        ("x" * LARGEST_RESULT, f"it has {LARGEST_RESULT + 2} bytes as JSON"),
    ],
)
async def test_what_cannot_be_kept_is_said_and_the_job_has_succeeded(app, drain, sql, value, why):
    @app.task(name="give")
    async def give():
        return value

    job = await give.defer_async()
    await drain()
    ((state, note, result),) = sql("select status::text, note, result from procjobs.job_history where id = %s", job)
    assert (state, result) == ("succeeded", None) and why in note
    assert (await app.wait_for(job)).note == note


async def test_one_from_a_process_too(app, drain, sql):
    app.task(name="odd", execution="process")(odd)
    await app.configure_task("odd").defer_async()
    await drain()
    assert "(a set) was not kept" in sql.one("select note from procjobs.jobs")


async def test_a_verdict_from_a_process_counts(app, drain, sql):
    app.task(name="settle", execution="process")(settle)
    await app.configure_task("settle").defer_async()
    await drain()
    assert sql("select status::text, note from procjobs.jobs") == [("aborted", "not today")]


async def test_what_only_postgresql_refuses_does_not_keep_the_others(app, drain, sql):
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    sql("alter role postgres set max_stack_depth = '100kB'")

    @app.task(name="give")
    async def give(n):
        return deep if n == 1 else n

    try:
        jobs = [await give.defer_async(n=n) for n in range(3)]
        await drain()
    finally:
        sql("alter role postgres reset max_stack_depth")
    assert [(await app.wait_for(job)).status for job in jobs] == ["succeeded"] * 3
    assert [await app.result(job) for job in (jobs[0], jobs[2])] == [0, 2]


def test_encoding_tells_a_nul_from_its_name():
    assert encode_result("\\u0000", strict_dumps)[0] == '"\\\\u0000"'
    assert encode_result("\\\x00", strict_dumps)[0] is None


# Waiting


async def test_a_waiter_hears_of_the_end_at_once(app, working, eventually, monkeypatch, sql):
    monkeypatch.setattr(results, "_POLL", 60.0)
    go = asyncio.Event()

    @app.task(name="give")
    async def give():
        await go.wait()
        return "here"

    job = await give.defer_async()
    async with working():
        waiting = asyncio.create_task(app.result(job, timeout=30))
        await eventually(lambda: app._results._hears)
        await eventually(lambda: sql.one("select pj_awaited from procrastinate_jobs"))
        go.set()
        assert await asyncio.wait_for(waiting, 10) == "here"


@pytest.mark.parametrize("end", ["failed", "cancelled", "aborted", "timeout", "deleted"])
async def test_every_other_end_is_announced_too(app, working, sql, monkeypatch, eventually, end):
    monkeypatch.setattr(results, "_POLL", 60.0)
    go = asyncio.Event()

    @app.task(name="work", timeout=0.2 if end == "timeout" else None)
    async def work():
        await go.wait()
        raise LookupError("no such page")

    job = await work.defer_async()
    waiting = asyncio.create_task(app.result(job, timeout=30))
    await eventually(lambda: app._results._hears)
    await eventually(lambda: sql.one("select pj_awaited from procrastinate_jobs"))
    if end == "cancelled":
        sql("select procjobs.cancel(%s, 'sent twice')", job)
    async with working(delete_jobs="always" if end == "deleted" else "never"):
        if end == "aborted":
            await eventually(lambda: sql.one("select status::text from procjobs.jobs") == "doing")
            sql("select procjobs.cancel(%s, 'sent twice')", job)
        elif end in ("failed", "deleted"):
            go.set()
        kind = {"failed": JobFailed, "timeout": JobFailed, "deleted": JobNotFound}.get(end, JobCancelled)
        with pytest.raises(kind) as found:
            await asyncio.wait_for(waiting, 10)
    match found.value:
        case JobFailed() as error if end == "failed":
            assert (error.error_class, error.error_message) == ("LookupError", "no such page")
        case JobFailed() as error:
            assert error.error_class == JobTimeout.__name__
        case JobCancelled() as cancelled:
            assert cancelled.reason == "sent twice"


async def test_many_wait_for_one_and_each_hears(app, working):
    @app.task(name="give")
    async def give():
        return 7

    job = await give.defer_async()
    waiting = [asyncio.create_task(app.result(job, timeout=20)) for _ in range(5)]
    async with working():
        assert await asyncio.gather(*waiting) == [7] * 5
    assert app._results._waiting == {}


async def test_who_waits_too_long_is_told_and_the_job_goes_on(app, drain):
    @app.task(name="give")
    async def give():
        return 7

    job = await give.defer_async()
    with pytest.raises(JobNotOver) as found:
        await app.result(job, timeout=0.1)
    assert isinstance(found.value, TimeoutError)
    await drain()
    assert await app.wait_for(job) == Outcome(job, "succeeded", 7)


async def test_an_unknown_job(app):
    with pytest.raises(JobNotFound):
        await app.result(4711, timeout=10)


async def test_a_waiter_outlives_its_connections(app, drain, sql, eventually):
    @app.task(name="give")
    async def give():
        return 7

    job = await give.defer_async()
    waiting = asyncio.create_task(app.result(job, timeout=30))
    await eventually(lambda: app._results._hears)
    sql(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    await eventually(lambda: not app._results._hears)
    await drain()
    assert await waiting == 7


async def test_without_a_waiter_nothing_is_announced(app, drain, dsn):
    @app.task(name="give")
    async def give():
        return 7

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener:
        await listener.execute("listen procjobs_ended")
        await give.defer_async()
        await drain()
        assert [n async for n in listener.notifies(timeout=0.2)] == []


async def test_a_retried_job_is_waited_for_again(app, drain, sql):
    runs = []

    @app.task(name="give")
    async def give():
        runs.append(1)
        return len(runs)

    job = await give.defer_async()
    await drain()
    assert await app.result(job) == 1
    sql("select procjobs.retry(%s)", job)
    waiting = asyncio.create_task(app.result(job, timeout=20))
    await drain()
    assert await waiting == 2


async def test_a_producer_may_ask_and_a_reader_may_not(app, drain, sql, dsn):
    @app.task(name="give")
    async def give():
        return {"secret": 1}

    job = await give.defer_async()
    await drain()
    for role, allowed in (("procjobs_producer", True), ("procjobs_reader", False)):
        name = f"results_{role}"
        sql(f"drop role if exists {name}")
        sql(f"create role {name} login in role {role}")
        try:
            async with procjobs.App(with_user(dsn, name)).open_async() as other:
                if allowed:
                    assert await other.result(job, timeout=10) == {"secret": 1}
                else:
                    with pytest.raises(procjobs.errors.DatabaseError):
                        await other.result(job, timeout=10)
        finally:
            sql(f"drop role {name}")


def test_results_are_json_text():
    assert json.loads(encode_result({"a": 1}, strict_dumps)[0] or "") == {"a": 1}
