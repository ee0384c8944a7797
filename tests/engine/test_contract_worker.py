"""Procrastinate's documented worker options hold, and its own worker works beside ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import procrastinate
from procrastinate import JobContext, exceptions

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import FAST, Drain


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
