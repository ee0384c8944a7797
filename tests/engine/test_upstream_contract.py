"""What Procrastinate documents holds on our App and worker, with nothing changed but the import.

By the chapters of its documentation: defer, configure, locks, retries, context, middleware, blueprints, cancel,
monitor, connectors, the builtin task, the shell, the command line, and its own worker beside ours.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate import JobContext, RetryDecision, RetryStrategy, exceptions, jobs
from procrastinate.shell import ProcrastinateShell
from procrastinate.testing import InMemoryConnector

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import FAST
from tests.engine.fleet import Fleet
from tests.processes import environment

Drain = Callable[..., Any]


def job_row(sql: Sql, job: int, *columns: str) -> tuple[Any, ...]:
    ((*row,),) = sql(f"select {', '.join(columns)} from procrastinate_jobs where id = %s", job)
    return tuple(row)


# -- defer ---------------------------------------------------------------------------------------------------------


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


# -- retries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "runs"),
    [
        (False, 1),
        (2, 3),  # two retries: upstream's own count
        (RetryStrategy(max_attempts=1), 2),
        (RetryStrategy(max_attempts=2, retry_exceptions={ValueError}), 3),
        (RetryStrategy(max_attempts=2, retry_exceptions={KeyError}), 1),
        (procjobs.Retry(max_attempts=2, base=0, cap=0), 2),
    ],
)
async def test_failed_runs_are_retried_as_often_as_the_strategy_says(
    app: procjobs.App, drain: Drain, sql: Sql, retry: Any, runs: int
) -> None:
    @app.task(name="failing", retry=retry, pass_context=True)
    async def failing(context: JobContext) -> None:
        seen.append(context.job.attempts)
        raise ValueError

    seen: list[int] = []
    job = await failing.defer_async()
    await drain()
    assert seen == list(range(runs))
    assert await app.job_manager.get_job_status_async(job) is jobs.Status.FAILED
    assert job_row(sql, job, "attempts") == (runs,)


async def test_retry_true_goes_on_until_success(app: procjobs.App, drain: Drain, sql: Sql) -> None:
    @app.task(name="flaky", retry=True)
    def flaky() -> None:
        seen.append(1)
        if len(seen) < 12:
            raise RuntimeError

    seen: list[int] = []
    job = await flaky.defer_async()
    await drain()
    assert len(seen) == 12 and await app.job_manager.get_job_status_async(job) is jobs.Status.SUCCEEDED
    assert sql.one("select attempts from procjobs.job_history") == 12


@pytest.mark.parametrize(
    ("strategy", "attempts", "wait"),
    [
        (RetryStrategy(max_attempts=9, wait=5), 2, 5),
        (RetryStrategy(max_attempts=9, linear_wait=7), 2, 14),
        (RetryStrategy(max_attempts=9, exponential_wait=6), 1, 36),
    ],
)
async def test_the_waits_are_those_of_the_strategy(
    app: procjobs.App, drain: Drain, sql: Sql, strategy: RetryStrategy, attempts: int, wait: int
) -> None:
    @app.task(name="failing", retry=strategy)
    async def failing() -> None:
        raise ValueError

    job = await failing.defer_async()
    sql("update procrastinate_jobs set attempts = %s", attempts)
    await drain()
    (waited,) = job_row(sql, job, "extract(epoch from scheduled_at - now())::float")
    assert wait - 5 < waited <= wait


async def test_a_strategy_of_ones_own_decides_by_error_and_job(app: procjobs.App, drain: Drain, sql: Sql) -> None:
    class Own(procrastinate.BaseRetryStrategy):
        def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> RetryDecision | None:
            seen.append((type(exception), job.id, job.attempts, job.task_kwargs, job.queue, job.status))
            if job.attempts:
                return None
            return RetryDecision(retry_in={"seconds": 0}, priority=7, queue="slow", lock="new")

    seen: list[Any] = []

    @app.task(name="failing", retry=Own(), queue="fast")
    async def failing(a: int) -> None:
        raise LookupError

    job = await failing.defer_async(a=1)
    await drain()
    assert seen == [
        (LookupError, job, 0, {"a": 1}, "fast", "doing"),
        (LookupError, job, 1, {"a": 1}, "slow", "doing"),
    ]
    assert job_row(sql, job, "status::text", "priority", "queue_name", "lock") == ("failed", 7, "slow", "new")


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


# -- cancel and abort ----------------------------------------------------------------------------------------------


async def test_waiting_jobs_are_cancelled_or_deleted(app: procjobs.App, drain: Drain, sql: Sql) -> None:
    @app.task(name="noop")
    async def noop() -> None:
        pass

    manager = app.job_manager
    cancelled, deleted, done = await noop.batch_defer_async({}, {}, {})
    assert await manager.cancel_job_by_id_async(cancelled) is True
    assert await manager.get_job_status_async(cancelled) is jobs.Status.CANCELLED
    assert await manager.cancel_job_by_id_async(cancelled, abort=True) is False
    assert await manager.cancel_job_by_id_async(deleted, delete_job=True) is True
    with pytest.raises(exceptions.ProcrastinateException):
        await manager.get_job_status_async(deleted)
    await drain()
    assert await manager.cancel_job_by_id_async(done) is False
    assert await manager.get_job_status_async(done) is jobs.Status.SUCCEEDED
    assert await manager.cancel_job_by_id_async(10**12) is False
    assert await manager.get_job_status_async(cancelled) is jobs.Status.CANCELLED
    assert sql.one("select state from procjobs.jobs where id = %s", cancelled) == "cancelled"


async def test_cancelling_a_waiting_job_with_abort_is_the_same_and_frees_its_lock(
    app: procjobs.App, drain: Drain
) -> None:
    @app.task(name="noop")
    async def noop() -> None:
        pass

    first = await noop.configure(lock="l").defer_async()
    second = await noop.configure(lock="l").defer_async()
    assert await app.job_manager.cancel_job_by_id_async(first, abort=True)
    await drain()
    assert await app.job_manager.get_job_status_async(first) is jobs.Status.CANCELLED
    assert await app.job_manager.get_job_status_async(second) is jobs.Status.SUCCEEDED


async def test_running_jobs_are_aborted_only_where_one_says_so(
    app: procjobs.App, working: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    @app.task(name="endless", retry=True)
    async def endless() -> None:
        await asyncio.Event().wait()

    manager = app.job_manager
    job = await endless.defer_async()
    async with working():
        await eventually(lambda: _is(manager, job, jobs.Status.DOING))
        assert await manager.cancel_job_by_id_async(job) is False
        assert await manager.cancel_job_by_id_async(job, abort=True) is True
        await eventually(lambda: _is(manager, job, jobs.Status.ABORTED))


async def _is(manager: Any, job: int, status: jobs.Status) -> bool:
    return await manager.get_job_status_async(job) is status


# -- monitor -------------------------------------------------------------------------------------------------------


@pytest.fixture
def keeping(dsn: str) -> procjobs.App:
    """An app that leaves finished jobs where Procrastinate leaves them, with jobs in every state after `fill`."""
    app = procjobs.App(dsn, finished_jobs="keep")

    @app.task(name="good", queue="mail")
    async def good() -> None:
        pass

    @app.task(name="bad", queue="mail")
    async def bad() -> None:
        raise ValueError

    @app.task(name="aborting", queue="slow")
    async def aborting() -> None:
        raise exceptions.JobAborted

    return app


async def fill(app: procjobs.App) -> dict[str, int]:
    made = {}
    for name, expected in (("good", "succeeded"), ("bad", "failed"), ("aborting", "aborted")):
        made[expected] = await app.tasks[name].configure(lock=f"lock {name}").defer_async()
    await app.run_worker_async(**{**FAST, "wait": False})
    made["todo"] = await app.tasks["good"].configure(schedule_in={"hours": 1}, lock="lock good").defer_async()
    made["cancelled"] = await app.tasks["good"].defer_async()
    await app.job_manager.cancel_job_by_id_async(made["cancelled"])
    return made


async def test_lists_and_counts_when_finished_jobs_are_kept(keeping: procjobs.App) -> None:
    async with keeping.open_async():
        made = await fill(keeping)
        manager = keeping.job_manager
        assert {job.id: job.status for job in await manager.list_jobs_async()} == {
            job: state for state, job in made.items()
        }
        assert [job.id for job in await manager.list_jobs_async(status="aborted")] == [made["aborted"]]
        assert [job.id for job in await manager.list_jobs_async(queue="slow")] == [made["aborted"]]
        assert [job.id for job in await manager.list_jobs_async(lock="lock good")] == [made["succeeded"], made["todo"]]
        (listed,) = await manager.list_jobs_async(id=made["failed"])
        assert (listed.task_name, listed.attempts, listed.lock) == ("bad", 1, "lock bad")

        mail, slow = await manager.list_queues_async()
        assert (mail["name"], mail["jobs_count"], mail["succeeded"], mail["failed"], mail["todo"]) == (
            "mail",
            4,
            1,
            1,
            1,
        )
        assert (slow["name"], slow["aborted"], slow["doing"]) == ("slow", 1, 0)
        assert [task["name"] for task in await manager.list_tasks_async()] == ["aborting", "bad", "good"]
        assert {lock["name"]: lock["jobs_count"] for lock in await manager.list_locks_async()} == {
            "lock good": 2, "lock bad": 1, "lock aborting": 1,
        }  # fmt: skip


async def test_a_failed_job_can_be_retried_by_hand(keeping: procjobs.App, sql: Sql) -> None:
    async with keeping.open_async():
        made = await fill(keeping)
        await keeping.job_manager.retry_job_by_id_async(made["failed"], datetime.datetime.now(datetime.UTC))
        assert await _is(keeping.job_manager, made["failed"], jobs.Status.TODO)
        assert sql("select state, finished_at from procjobs.jobs where id = %s", made["failed"]) == [("waiting", None)]
        await keeping.run_worker_async(**{**FAST, "wait": False})
        assert await _is(keeping.job_manager, made["failed"], jobs.Status.FAILED)
    assert sql.one("select count(*) from procjobs.job_attempts where job_id = %s", made["failed"]) == 2


async def test_the_recipe_for_stalled_jobs_works_beside_our_rescue(app: procjobs.App, sql: Sql) -> None:
    fleet = Fleet(sql)
    job = fleet.defer(lock="l")
    worker = fleet.worker()
    (claim,) = fleet.claim(worker)
    assert list(await app.job_manager.get_stalled_jobs()) == []
    sql("update procrastinate_workers set last_heartbeat = now() - interval '31 seconds'")
    (stalled,) = await app.job_manager.get_stalled_jobs(queue="default", task_name="work")
    assert stalled.id == job
    await app.job_manager.retry_job(stalled)
    assert fleet.finish(claim) == []
    fleet.die(worker)
    assert sql.one("select procjobs.rescue_jobs()") == 0
    assert fleet.claim_ids(fleet.worker()) == [job]


def test_the_shell_shows_cancels_and_retries(
    keeping: procjobs.App, capsys: pytest.CaptureFixture[str], sql: Sql
) -> None:
    async def prepare() -> dict[str, int]:
        async with keeping.open_async():
            return await fill(keeping)

    made = asyncio.run(prepare())
    with keeping.replace_connector(procrastinate.PsycopgConnector(conninfo=sql.connection.info.dsn)):
        shell = ProcrastinateShell(keeping.job_manager)

        def say(command: str) -> str:
            async def run() -> None:
                async with keeping.open_async():
                    await asyncio.to_thread(shell.onecmd, command)

            asyncio.run(run())
            captured = capsys.readouterr()
            assert "Traceback" not in captured.out + captured.err, captured
            return captured.out

        listed = say("list_jobs")
        assert all(f"#{job} " in listed and f"[{state}]" in listed for state, job in made.items())
        assert say("list_jobs status=failed details").startswith(
            f"#{made['failed']} bad on mail - [failed] (attempts=1"
        )
        assert "mail: 4 jobs (todo: 1, doing: 0, succeeded: 1, failed: 1, cancelled: 1, aborted: 0)" in say(
            "list_queues"
        )
        assert "bad: 1 jobs" in say("list_tasks") and "lock good: 2 jobs" in say("list_locks")
        assert "[cancelled]" in say(f"cancel {made['todo']}")
        assert "[todo]" in say(f"retry {made['failed']}")
    assert sql.one("select status::text from procrastinate_jobs where id = %s", made["todo"]) == "cancelled"


# -- after the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delete_jobs", "left"),
    [
        ("never", {"succeeded", "failed", "aborted"}),
        ("successful", {"failed", "aborted"}),
        ("always", set()),
        (jobs.DeleteJobCondition.ALWAYS, set()),
    ],
)
async def test_delete_jobs(keeping: procjobs.App, sql: Sql, delete_jobs: Any, left: set[str]) -> None:
    async with keeping.open_async():
        for name in ("good", "bad", "aborting"):
            await keeping.tasks[name].defer_async()
        await keeping.run_worker_async(**{**FAST, "wait": False, "delete_jobs": delete_jobs})
    assert {state for (state,) in sql("select status::text from procjobs.jobs")} == left


@pytest.mark.parametrize("finished_jobs", ["keep", "archive"])
@pytest.mark.parametrize(
    "name", ["builtin:procrastinate.builtin_tasks.remove_old_jobs", "procrastinate.builtin_tasks.remove_old_jobs"]
)
async def test_the_builtin_task_removes_old_jobs(dsn: str, sql: Sql, finished_jobs: str, name: str) -> None:
    app = procjobs.App(dsn, finished_jobs=finished_jobs)

    @app.task(name="good")
    async def good() -> None:
        pass

    @app.task(name="bad")
    async def bad() -> None:
        raise ValueError

    async with app.open_async():
        for old in (True, False):
            await good.defer_async()
            await bad.defer_async()
            await app.run_worker_async(**{**FAST, "wait": False})
            if old:
                sql("update procrastinate_jobs set pj_finished_at = now() - interval '73 hours'")
                sql("update procjobs.job_history set finished_at = now() - interval '73 hours'")
        for options, left in (({}, 3), ({"remove_failed": True}, 2)):
            await app.configure_task(name).defer_async(max_hours=72, **options)
            await app.run_worker_async(**{**FAST, "wait": False})
            assert sql.one("select count(*) from procjobs.jobs where task in ('good', 'bad')") == left


# -- connectors ----------------------------------------------------------------------------------------------------


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


# -- worker options ------------------------------------------------------------------------------------------------


async def test_the_worker_works_the_queues_it_was_given(app: procjobs.App, drain: Drain) -> None:
    ran: list[str] = []

    @app.task(name="t", pass_context=True)
    async def t(context: JobContext) -> None:
        ran.append(context.job.queue)

    for queue in ("a", "b", "c"):
        await t.configure(queue=queue).defer_async()
    await drain(queues=["a", "c"])
    assert sorted(ran) == ["a", "c"]
    app.worker_defaults["queues"] = ["b"]
    await drain()
    assert sorted(ran) == ["a", "b", "c"]


async def test_no_more_jobs_run_at_once_than_the_concurrency_says(app: procjobs.App, drain: Drain) -> None:
    running, most = 0, 0

    @app.task(name="t")
    async def t() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    await t.batch_defer_async(*[{}] * 30)
    await drain(concurrency=1)
    assert most == 1
    await t.batch_defer_async(*[{}] * 30)
    await drain(concurrency=4)
    assert 2 <= most <= 4


async def test_upstreams_worker_and_ours_drain_one_queue_together(app: procjobs.App, dsn: str, sql: Sql) -> None:
    stock = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
    runs: list[tuple[int, str]] = []

    def tasks(of: procrastinate.App, who: str) -> None:
        @of.task(name="t", pass_context=True, retry=1)
        async def t(context: JobContext, fail: bool) -> None:
            assert context.job.id is not None
            runs.append((context.job.id, who))
            await asyncio.sleep(0.001)
            if fail and context.job.attempts == 0:
                raise ValueError

        @of.task(name="both_enqueue")
        async def both_enqueue(n: int) -> None:
            await of.configure_task("t", lock=f"lock {n % 3}").defer_async(fail=n % 5 == 0)

    tasks(app, "ours")
    tasks(stock, "stock")
    async with stock.open_async():
        for n in range(90):
            await (app if n % 2 else stock).configure_task("both_enqueue").defer_async(n=n)
            await (stock if n % 2 else app).configure_task("t", lock=f"lock {n % 4}").defer_async(fail=n % 7 == 0)

        async def keep_stock_running() -> None:
            while True:  # a lost race for a lock ends upstream's own worker
                with suppress(exceptions.UniqueViolation):
                    await stock.run_worker_async(
                        concurrency=3, install_signal_handlers=False, fetch_job_polling_interval=0.05
                    )

        workers = [
            asyncio.create_task(app.run_worker_async(**{**FAST, "concurrency": 3})),
            asyncio.create_task(keep_stock_running()),
        ]
        async with asyncio.timeout(40):
            while sql.one("select count(*) from procrastinate_jobs where status in ('todo', 'doing')"):
                assert not any(worker.done() for worker in workers)
                await asyncio.sleep(0.05)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    failing = sum(n % 7 == 0 for n in range(90)) + sum(n % 5 == 0 for n in range(90))
    counted = Counter(Counter(job for job, _ in runs).values())
    assert counted == {1: 180 - failing, 2: failing}
    assert {who for _, who in runs} == {"ours", "stock"}
    assert sql("select status::text, count(*) from procjobs.jobs group by 1") == [("succeeded", 270)]


# -- the command line ----------------------------------------------------------------------------------------------

SHOP = """
import asyncio, os, procjobs
app = procjobs.App(os.environ["SHOP_DSN"], import_paths=["more_tasks"])

@app.task(name="sell", queue="shop")
async def sell(item: str):
    print("sold", item, flush=True)

@app.task(name="wait", queue="shop")
async def wait():
    print("waiting", flush=True)
    await asyncio.sleep(600)
"""
MORE = """
from shop import app

@app.task(name="more", queue="shop")
def more():
    print("more", flush=True)
"""


@pytest.fixture
def shop(tmp_path: Path, dsn: str) -> Iterator[Callable[..., Any]]:
    """`shop("worker", ...)` runs `python -m procrastinate --app=shop.app worker ...`; wait=False gives the process."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "more_tasks.py").write_text(MORE)
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, wait: bool = True, dsn: str = dsn) -> Any:
        variables = environment(SHOP_DSN=dsn)
        variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
        process = subprocess.Popen(
            [sys.executable, "-m", "procrastinate", "--app=shop.app", *arguments],
            cwd=tmp_path, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        if not wait:
            return process
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_command_line_defers_works_and_checks(shop: Callable[..., Any], sql: Sql) -> None:
    code, out, err = shop("defer", "sell", '{"item": "hat"}')
    assert code == 0, err
    code, _, err = shop(
        "defer", "--lock=l", "--priority=5", "--in=3600", "--queue=later", "--unknown", "nobody.knows", "{}"
    )
    assert code == 0, err
    assert sql("select task_name, queue_name, lock, priority, pj_waits_for from procrastinate_jobs order by id") == [
        ("sell", "shop", None, 0, None),
        ("nobody.knows", "later", "l", 5, "time"),
    ]
    code, _, err = shop("defer", "sell", '{"wrong": 1}')
    assert code != 0 and "wrong" in err
    code, _, err = shop("defer", "more", "{}")
    assert code == 0, err
    code, out, err = shop("worker", "--queues=shop", "--one-shot", "--concurrency=2")
    assert code == 0, err
    assert "sold hat" in out and "more" in out
    code, out, err = shop("healthchecks")
    assert code == 0 and "OK" in out, err
    code, out, err = shop("shell", "list_queues")
    assert code == 0 and "later: 1 jobs" in out, err


def test_the_command_line_tells_what_is_wrong_by_its_exit_code(shop: Callable[..., Any], empty_dsn: str) -> None:
    code, _, err = shop("worker", "--one-shot", dsn=empty_dsn)
    assert code != 0 and "procjobs" in err
    code, _, _ = shop("healthchecks", dsn=empty_dsn)
    assert code != 0
    code, _, err = shop("schema", "--apply", dsn=empty_dsn)
    assert code == 0, err
    code, _, err = shop("defer", "sell", '{"item": "hat"}', dsn=empty_dsn)
    assert code == 0, err
    code, out, err = shop("worker", "--one-shot", dsn=empty_dsn)
    assert code == 0 and "sold hat" in out, err


def test_a_worker_of_the_command_line_gives_its_jobs_back_and_ends_with_0(
    shop: Callable[..., Any], sql: Sql, eventually: Callable[..., Any]
) -> None:
    assert shop("defer", "wait", "{}")[0] == 0
    process = shop("worker", "--shutdown-graceful-timeout=0.2", wait=False)
    eventually(lambda: sql.one("select count(*) from procrastinate_jobs where status = 'doing'"), timeout=30)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "waiting" in out
    assert sql("select status::text, attempts from procrastinate_jobs") == [("todo", 0)]
