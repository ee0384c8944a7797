"""What Procrastinate documents of job context, middleware, blueprints and periodic tasks holds on our worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import procrastinate
import pytest
from procrastinate import JobContext, exceptions

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import Drain
from tests.engine.fleet import Fleet

# -- context and middleware ----------------------------------------------------------------------------------------


async def test_the_context_says_all_that_is_documented(app: procjobs.App, drain: Drain) -> None:
    found: dict[str, Any] = {}

    @app.task(name="ctx_async", pass_context=True, queue="q1")
    async def in_loop(context: JobContext, a: int) -> None:
        found["async"] = (context, a)

    @app.task(name="ctx_sync", pass_context=True, queue="q2")
    def in_thread(context: JobContext, a: int) -> None:
        found["sync"] = (context, a)

    first = await in_loop.configure(lock="l", queueing_lock="ql", priority=2).defer_async(a=1)
    await in_thread.defer_async(a=2)
    await drain(queues=["q1", "q2"], name="ann", additional_context={"key": "value"})
    for kind, task, a in (("async", in_loop, 1), ("sync", in_thread, 2)):
        context, given = found[kind]
        assert given == a
        assert context.app is app and context.task is task
        assert context.worker_name == "ann" and list(context.worker_queues) == ["q1", "q2"]
        assert context.additional_context == {"key": "value"}
        assert context.start_timestamp > 1e9 and not context.should_abort() and context.abort_reason() is None
    job = found["async"][0].job
    assert (
        job.id, job.task_name, job.task_kwargs, job.queue, job.lock, job.queueing_lock, job.priority, job.attempts,
    ) == (
        first, "ctx_async", {"a": 1}, "q1", "l", "ql", 2, 0,
    )  # fmt: skip
    assert job.status == "doing" and job.worker_id is not None and job.call_string == f"ctx_async[{first}](a=1)"


async def test_middleware_wraps_in_the_documented_order(app: procjobs.App, drain: Drain) -> None:
    order: list[str] = []

    def around(name: str) -> Any:
        async def middleware(call_next: Any, context: JobContext, worker: Any) -> Any:
            order.append(f"{name} before {context.job.task_name}")
            assert context.app is app and worker.concurrency == 1
            result = await call_next()
            order.append(f"{name} after {result}")
            return result

        return middleware

    def sync_around(call_next: Any, context: JobContext, worker: Any) -> Any:
        order.append("sync before")
        result = call_next()
        order.append(f"sync after {result}")
        return result

    @app.task(name="t", task_middleware=[around("task 1"), around("task 2")])
    async def in_loop() -> str:
        order.append("run")
        return "value"

    @app.task(name="s", task_middleware=[sync_around])
    def in_thread() -> str:
        order.append("run")
        return "value"

    await in_loop.defer_async()
    options = {
        "worker_middleware": [around("worker")],
        "task_middleware": [around("all"), sync_around],
        "concurrency": 1,
    }
    await drain(**options)
    assert order == [
        "worker before t", "all before t", "task 1 before t", "task 2 before t", "run",
        "task 2 after value", "task 1 after value", "all after value", "worker after value",
    ]  # fmt: skip
    order.clear()
    await in_thread.defer_async()
    await drain(**options)
    assert order == [
        "worker before s", "sync before", "sync before", "run",
        "sync after value", "sync after value", "worker after value",
    ]  # fmt: skip


async def test_middleware_may_fail_a_job_save_one_or_skip_one(app: procjobs.App, drain: Drain, sql: Sql) -> None:
    ran: list[str] = []

    async def judge(call_next: Any, context: JobContext, worker: Any) -> Any:
        kind = context.job.task_kwargs["kind"]
        if kind == "skip":
            return None
        try:
            result = await call_next()
        except ValueError:
            return None
        if kind == "fail":
            raise RuntimeError("the middleware says no")
        return result

    @app.task(name="t")
    async def t(kind: str) -> None:
        ran.append(kind)
        if kind == "save":
            raise ValueError

    made = {kind: await t.defer_async(kind=kind) for kind in ("plain", "skip", "save", "fail")}
    await drain(worker_middleware=[judge])
    assert ran == ["plain", "save", "fail"]
    states = {kind: (await app.job_manager.get_job_status_async(job)).value for kind, job in made.items()}
    assert states == {"plain": "succeeded", "skip": "succeeded", "save": "succeeded", "fail": "failed"}
    assert sql.one("select error_message from procjobs.job_attempts") == "the middleware says no"


def test_middleware_of_the_wrong_kind_is_refused(dsn: str) -> None:
    app = procjobs.App(dsn)

    async def middleware(call_next: Any, context: JobContext, worker: Any) -> Any:
        return await call_next()

    with pytest.raises(exceptions.MiddlewareKindMismatch):
        app.task(name="t", task_middleware=[middleware])(lambda: None)


# -- blueprints, aliases, periodic tasks ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [procrastinate.Blueprint, procjobs.Blueprint])
async def test_blueprints_bring_their_tasks_under_a_namespace(
    app: procjobs.App, drain: Drain, sql: Sql, kind: type[procrastinate.Blueprint]
) -> None:
    ran: list[str] = []
    inner, outer = kind(), kind()

    @inner.task(name="first", aliases=["older"])
    async def first() -> None:
        ran.append("first")

    @outer.task(name="second")
    async def second() -> None:
        ran.append("second")

    with pytest.raises(exceptions.UnboundTaskError):
        await first.defer_async()
    outer.add_tasks_from(inner, namespace="in")
    app.add_tasks_from(outer, namespace="out")
    app.add_task_alias(second, "oldest")
    assert {"out:in:first", "out:in:older", "out:second", "oldest"} <= set(app.tasks)

    await first.defer_async()
    await second.defer_async()
    await app.configure_task("out:in:older").defer_async()
    await app.configure_task("oldest").defer_async()
    Fleet(sql).defer("oldest")  # by code that knows only the old name
    await drain()
    assert sorted(ran) == ["first"] * 2 + ["second"] * 3
    assert {name for (name,) in sql("select task_name from procjobs.job_history")} == {
        "oldest", "out:in:first", "out:second",
    }  # fmt: skip


async def test_a_periodic_task_gets_its_slot_as_timestamp(
    app: procjobs.App, working: Callable[..., Any], sql: Sql, eventually: Callable[..., Any]
) -> None:
    ran: list[Any] = []

    @app.periodic(cron="* * * * * *", periodic_id="every second", queue="ticks", lock="l", task_kwargs={"a": 1})
    @app.task(name="tick", pass_context=True)
    async def tick(context: JobContext, timestamp: int, a: int) -> None:
        ran.append((timestamp, a, context.job.queue, context.job.lock))

    async with working():
        await eventually(lambda: len(ran) >= 3)
    slots = [slot for slot, *_ in ran]
    assert slots == sorted(set(slots)) and {tuple(rest) for _, *rest in ran} == {(1, "ticks", "l")}
    assert sql("select task_name, periodic_id from procrastinate_periodic_defers") == [("tick", "every second")]
