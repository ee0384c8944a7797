"""Procrastinate's own workers and ours drain the same queues at the same time, and its shell works on our tables."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import procrastinate
import pytest
from procrastinate import JobContext, exceptions
from procrastinate.shell import ProcrastinateShell

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import FAST


class Run(NamedTuple):
    job: int
    who: str
    lock: str | None
    priority: int


class Pair:
    """Our app and a stock one with the same tasks, and what ran where."""

    def __init__(self, ours: procjobs.App, dsn: str, sql: Sql, eventually: Callable[..., Any]) -> None:
        self.ours = ours
        self.stock = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
        self.sql, self.eventually = sql, eventually
        self.runs: list[Run] = []
        self.inside: Counter[str] = Counter()
        self.violations: list[Run] = []
        self._add_tasks(self.ours, "ours")
        self._add_tasks(self.stock, "stock")

    def _add_tasks(self, app: procrastinate.App, who: str) -> None:
        @app.task(name="t", pass_context=True, retry=1)
        async def t(context: JobContext, fail: bool = False) -> None:
            run = self._enter(context, who)
            try:
                await asyncio.sleep(0.002)
                if fail and context.job.attempts == 0:
                    raise ValueError
            finally:
                self._leave(run)

        @app.task(name="parent")
        async def parent(n: int) -> None:
            await app.configure_task("t", lock=f"lock {n % 3}").defer_async(fail=n % 5 == 0)

        @app.task(name="endless", pass_context=True)
        async def endless(context: JobContext) -> None:
            run = self._enter(context, who)
            try:
                await asyncio.Event().wait()
            finally:
                self._leave(run)

    def _enter(self, context: JobContext, who: str) -> Run:
        job = context.job
        assert job.id is not None
        run = Run(job.id, who, job.lock, job.priority)
        self.runs.append(run)
        if run.lock is not None:
            if self.inside[run.lock]:
                self.violations.append(run)
            self.inside[run.lock] += 1
        return run

    def _leave(self, run: Run) -> None:
        if run.lock is not None:
            self.inside[run.lock] -= 1

    @asynccontextmanager
    async def working(self, concurrency: int = 3) -> AsyncIterator[None]:
        """Two workers of ours and two stock ones."""
        ours = {**FAST, "concurrency": concurrency}
        workers = [asyncio.create_task(self.ours.run_worker_async(**ours)) for _ in range(2)]
        workers += [asyncio.create_task(self._keep_stock_running(concurrency)) for _ in range(2)]
        try:
            yield
            assert not any(worker.done() for worker in workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _keep_stock_running(self, concurrency: int) -> None:
        while True:  # a lost race for a lock ends upstream's own worker
            with suppress(exceptions.UniqueViolation):
                await self.stock.run_worker_async(
                    concurrency=concurrency, install_signal_handlers=False, fetch_job_polling_interval=0.05,
                    abort_job_polling_interval=0.1,
                )  # fmt: skip

    async def until_drained(self) -> None:
        unfinished = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
        await self.eventually(lambda: not self.sql.one(unfinished), timeout=60)


@pytest.fixture
async def pair(app: procjobs.App, dsn: str, sql: Sql, eventually: Callable[..., Any]) -> AsyncIterator[Pair]:
    both = Pair(app, dsn, sql, eventually)
    async with both.stock.open_async():
        yield both


def _turns(count: int, *apps: Any) -> Iterable[tuple[int, Any]]:
    return ((n, apps[n % len(apps)]) for n in range(count))


async def test_nothing_is_lost_or_doubled_and_no_lock_is_held_twice(pair: Pair, sql: Sql) -> None:
    for n, app in _turns(90, pair.stock, pair.ours):
        await app.configure_task("parent", priority=n % 4).defer_async(n=n)
        soon = {"milliseconds": 10 * (n % 50)} if n % 3 == 0 else None
        await app.configure_task("t", lock=f"lock {n % 4}", schedule_in=soon).defer_async(fail=n % 7 == 0)
    async with pair.working():
        await pair.until_drained()
    failing = sum(n % 7 == 0 for n in range(90)) + sum(n % 5 == 0 for n in range(90))
    assert Counter(Counter(run.job for run in pair.runs).values()) == {1: 180 - failing, 2: failing}
    assert pair.violations == []
    assert {run.who for run in pair.runs} == {"ours", "stock"}
    assert sql("select status::text, count(*) from procjobs.jobs group by 1") == [("succeeded", 270)]


async def test_jobs_of_many_priorities_under_one_lock_run_one_at_a_time(pair: Pair) -> None:
    for n, app in _turns(60, pair.stock, pair.ours):
        await app.configure_task("t", lock="one", priority=(7 * n) % 5).defer_async()
    async with pair.working():
        await pair.until_drained()
    assert pair.violations == [] and len({run.job for run in pair.runs}) == len(pair.runs) == 60


async def test_either_manager_aborts_what_either_worker_runs(
    pair: Pair, sql: Sql, eventually: Callable[..., Any]
) -> None:
    ids = [await pair.ours.configure_task("endless", lock=f"lock {n}").defer_async() for n in range(12)]
    behind = [await pair.stock.configure_task("t", lock=f"lock {n}").defer_async() for n in range(12)]
    async with pair.working(concurrency=3):  # four workers: all twelve run at once
        await eventually(lambda: len(pair.runs) == 12)
        assert {run.who for run in pair.runs} == {"ours", "stock"}
        for job, app in zip(ids, [pair.ours, pair.stock] * 6, strict=True):
            assert await app.job_manager.cancel_job_by_id_async(job, abort=True)
        await pair.until_drained()
    assert Counter(run.job for run in pair.runs) == Counter([*ids, *behind]) and pair.violations == []
    assert dict(sql("select concat_ws(' ', task, status), count(*) from procjobs.jobs group by 1")) == {
        "endless aborted": 12,
        "t succeeded": 12,
    }


def test_the_stock_shell_lists_cancels_and_retries_on_our_tables(
    dsn: str, sql: Sql, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = procjobs.App(dsn)

    @ours.task(name="bad", queue="mail")
    async def bad() -> None:
        raise ValueError

    async def prepare() -> tuple[int, int]:
        async with ours.open_async():
            failed = await bad.defer_async()
            await ours.run_worker_async(**{**FAST, "wait": False})
            return failed, await bad.configure(lock="l", schedule_in={"hours": 1}).defer_async()

    failed, waiting = asyncio.run(prepare())

    def say(command: str) -> str:
        stock = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))

        async def run() -> None:
            async with stock.open_async():
                await asyncio.to_thread(ProcrastinateShell(stock.job_manager).onecmd, command)

        asyncio.run(run())
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err, captured
        return captured.out

    assert say("list_jobs status=failed").strip() == f"#{failed} bad on mail - [failed]"
    assert "mail: 2 jobs (todo: 1, doing: 0, succeeded: 0, failed: 1, cancelled: 0, aborted: 0)" in say("list_queues")
    assert "bad: 2 jobs" in say("list_tasks") and "l: 1 jobs" in say("list_locks")
    assert "[cancelled]" in say(f"cancel {waiting}")
    assert "[todo]" in say(f"retry {failed}")
    asyncio.run(_drained(ours))
    assert sql("select id, status::text from procjobs.jobs order by id") == [(failed, "failed"), (waiting, "cancelled")]
    assert sql.one("select count(*) from procjobs.job_attempts where job_id = %s", failed) == 2


async def _drained(app: procjobs.App) -> None:
    async with app.open_async():
        await app.run_worker_async(**{**FAST, "wait": False})
