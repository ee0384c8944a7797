"""What Procrastinate documents of stopping a worker holds: by cancelling its task once, twice, or from a middleware."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from procrastinate import JobContext, exceptions

import procjobs
from procjobs.engine.worker import ShutdownIncomplete
from tests.conftest import Sql
from tests.engine.conftest import FAST, Drain


@pytest.fixture
def running(app: procjobs.App, eventually: Callable[..., Any]) -> Callable[..., Any]:
    """`await running(task)` defers it and gives the worker that runs it, without a limit to its shutdown."""

    async def start(task: Any, **options: Any) -> asyncio.Task[None]:
        job = await task.defer_async()
        worker = asyncio.create_task(
            app.run_worker_async(**{**FAST, "shutdown_graceful_timeout": None, "kill_timeout": 30.0, **options})
        )
        await eventually(lambda: _is_running(app, job))
        return worker

    return start


async def _is_running(app: procjobs.App, job: int) -> bool:
    return (await app.job_manager.get_job_status_async(job)).value == "doing"


async def test_cancelling_it_once_waits_for_running_jobs(app: procjobs.App, running: Any, sql: Sql) -> None:
    go = asyncio.Event()

    @app.task(name="t")
    async def t() -> None:
        await go.wait()

    worker = await running(t)
    worker.cancel()
    done, _ = await asyncio.wait([worker], timeout=0.3)
    assert not done
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(worker, 10)
    assert sql("select status::text, attempts from procjobs.jobs") == [("succeeded", 1)]


@pytest.mark.parametrize("execution", ["async", "thread"])
async def test_cancelling_it_twice_takes_the_jobs_from_it_and_waits_until_they_stopped(
    app: procjobs.App, running: Any, sql: Sql, execution: str
) -> None:
    stopped: list[str] = []

    async def in_loop(context: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)  # it takes its time
            stopped.append("async")

    def in_thread(context: JobContext) -> None:
        while not context.should_abort():
            time.sleep(0.01)
        stopped.append("thread")
        raise exceptions.JobAborted

    function: Any = in_loop if execution == "async" else in_thread
    worker = await running(app.task(name="t", pass_context=True)(function))
    worker.cancel()
    done, _ = await asyncio.wait([worker], timeout=0.1)
    assert not done
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(worker, 10)
    assert stopped == [execution]
    assert sql("select status::text, attempts, worker_id from procrastinate_jobs") == [("todo", 0, None)]
    assert sql.one("select count(*) from procrastinate_workers") == 0


async def test_a_third_time_leaves_without_jobs_that_do_not_stop(app: procjobs.App, running: Any, sql: Sql) -> None:
    deaf = True
    runs: list[Any] = []

    @app.task(name="t")
    async def t() -> None:
        runs.append(asyncio.current_task())
        while deaf:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                continue

    worker = await running(t)
    try:
        for _ in range(2):
            worker.cancel()
            done, _ = await asyncio.wait([worker], timeout=0.1)
            assert not done
        worker.cancel()
        with pytest.raises(ShutdownIncomplete):
            await asyncio.wait_for(worker, 10)
    finally:
        deaf = False
        for run in runs:
            run.cancel()
            await asyncio.wait([run])
    assert sql.one("select status::text from procrastinate_jobs") == "doing"  # rescue has it


async def test_waiting_for_it_with_a_time_limit_stops_it_in_order(app: procjobs.App, running: Any, sql: Sql) -> None:
    @app.task(name="t")
    async def t() -> None:
        await asyncio.Event().wait()

    worker = await running(t)
    worker.cancel()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(worker, 0.2)
    assert worker.done()
    assert sql("select status::text, attempts from procrastinate_jobs") == [("todo", 0)]


async def test_a_middleware_may_stop_the_worker(app: procjobs.App, drain: Drain, sql: Sql) -> None:
    ran: list[int] = []

    async def only_one(call_next: Any, context: JobContext, worker: Any) -> Any:
        try:
            return await call_next()
        finally:
            worker.stop()

    @app.task(name="t")
    async def t(n: int) -> None:
        ran.append(n)

    await t.batch_defer_async(*({"n": n} for n in range(50)))
    await drain(worker_middleware=[only_one], concurrency=1, wait=True)
    assert ran == [0]
    assert sql.one("select count(*) from procrastinate_jobs where status = 'todo' and attempts = 0") == 49
