"""Procrastinate's documented retry strategies hold on our App and worker."""

from __future__ import annotations

from typing import Any

import procrastinate
import pytest
from procrastinate import JobContext, RetryDecision, RetryStrategy, jobs

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import Drain
from tests.engine.fleet import job_row


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
