"""What Procrastinate documents of app.job_manager holds: cancelling, listing, retrying and removing jobs; its shell."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Any

import procrastinate
import procrastinate.builtin_tasks
import procrastinate.testing
import pytest
from procrastinate import exceptions, jobs
from procrastinate.shell import ProcrastinateShell

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import FAST, Drain
from tests.engine.fleet import Fleet

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


@pytest.mark.parametrize("finished_jobs", ["archive", "keep"])
async def test_lists_and_counts_have_what_ended_too_wherever_it_is(dsn: str, finished_jobs: str) -> None:
    app = procjobs.App(dsn, finished_jobs=finished_jobs)

    @app.task(name="good", queue="mail", lock="l")
    async def good(to: str) -> None:
        pass

    @app.task(name="bad", queue="slow")
    async def bad() -> None:
        raise ValueError

    manager = app.job_manager
    async with app.open_async():
        done = await good.defer_async(to="ann")
        failed = await bad.defer_async()
        await app.run_worker_async(**{**FAST, "wait": False})
        waiting = await good.configure(schedule_in={"hours": 1}, queueing_lock="ql").defer_async(to="bob")

        async def ids(**filters: Any) -> list[int | None]:
            return [job.id for job in await manager.list_jobs_async(**filters)]

        assert await ids() == [done, failed, waiting]
        assert await ids(id=done) == await ids(status="succeeded") == await ids(lock="l", status="succeeded") == [done]
        assert await ids(queue="mail") == await ids(task="good") == [done, waiting]
        assert await ids(queueing_lock="ql") == [waiting] and await ids(id=waiting + 1) == []
        (job,) = await manager.list_jobs_async(id=done)
        assert job.worker_id is not None and await ids(worker_id=job.worker_id) == [done, failed]
        assert (job.task_kwargs, job.attempts, job.status, job.abort_requested) == (
            {"to": "ann"},
            1,
            "succeeded",
            False,
        )

        zero = dict.fromkeys(("todo", "doing", "succeeded", "failed", "cancelled", "aborted"), 0)
        mail = {**zero, "name": "mail", "jobs_count": 2, "todo": 1, "succeeded": 1}
        slow = {**zero, "name": "slow", "jobs_count": 1, "failed": 1}
        assert await manager.list_queues_async() == [mail, slow]
        assert await manager.list_queues_async(status="failed") == [slow]
        assert await manager.list_tasks_async() == [{**slow, "name": "bad"}, {**mail, "name": "good"}]
        assert await manager.list_locks_async() == [{**mail, "name": "l"}]
        assert await manager.list_locks_async(queue="slow") == await manager.list_tasks_async(task="x") == []
    with app.open():
        assert [job.id for job in manager.list_jobs()] == [done, failed, waiting]
        assert manager.list_queues(queue="mail") == [mail] and manager.list_tasks(lock="l") == [
            {**mail, "name": "good"}
        ]
        assert manager.list_locks() == [{**mail, "name": "l"}]


def test_lists_of_an_app_in_memory_are_upstreams() -> None:
    app = procjobs.App(procrastinate.testing.InMemoryConnector())
    job = app.configure_task("t", queue="q", lock="l").defer()
    manager = app.job_manager
    assert [listed.id for listed in asyncio.run(manager.list_jobs_async(queue="q"))] == [job]
    assert [listed.id for listed in manager.list_jobs(task="t")] == [job]
    for rows in (manager.list_queues(), asyncio.run(manager.list_tasks_async()), manager.list_locks()):
        assert [row["jobs_count"] for row in rows] == [1]


async def test_jobs_that_run_long_are_listed_by_the_deprecated_number_of_seconds(app: procjobs.App, sql: Sql) -> None:
    fleet = Fleet(sql)
    old, _ = fleet.defer(), fleet.defer()
    fleet.claim(fleet.worker(), 2)
    sql("update procrastinate_jobs set pj_started_at = now() - interval '35 minutes' where id = %s", old)

    async def listed(**filters: Any) -> list[int | None]:
        with pytest.warns(DeprecationWarning, match="nb_seconds"):
            return [job.id for job in await app.job_manager.get_stalled_jobs(**filters)]

    assert await listed(nb_seconds=1800) == await listed(nb_seconds=1800, queue="default", task_name="work") == [old]
    assert await listed(nb_seconds=3600) == await listed(nb_seconds=1800, queue="other") == []


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


async def test_the_builtin_task_is_deferred_by_its_function(
    dsn: str, drain: Drain, app: procjobs.App, sql: Sql
) -> None:
    """Whatever other apps there are: it goes through the one made last."""
    task = procrastinate.builtin_tasks.remove_old_jobs
    made = await task.configure(queueing_lock="one").defer_async(max_hours=72)
    with pytest.raises(exceptions.AlreadyEnqueued):
        await task.configure(queueing_lock="one").defer_async(max_hours=72)
    await drain()
    assert await _is(app.job_manager, made, jobs.Status.SUCCEEDED)

    for _ in range(12):  # each gives its own task a longer name
        procrastinate.App(connector=procrastinate.testing.InMemoryConnector())
    later = procjobs.App(dsn)
    async with later.open_async():
        made = await task.defer_async(max_hours=72)
        await later.run_worker_async(**{**FAST, "wait": False})
        assert await _is(later.job_manager, made, jobs.Status.SUCCEEDED)


async def test_a_task_of_ones_own_may_call_the_builtin_one(app: procjobs.App, drain: Drain, sql: Sql) -> None:
    @app.task(name="clean", pass_context=True)
    async def clean(context: procrastinate.JobContext) -> None:
        await procrastinate.builtin_tasks.remove_old_jobs(context, max_hours=0, remove_failed=True)

    await clean.defer_async()
    await drain()
    await clean.defer_async()
    await drain()
    assert sql("select task, status::text from procjobs.jobs") == [("clean", "succeeded")]
