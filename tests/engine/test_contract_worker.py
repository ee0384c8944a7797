"""Procrastinate's documented worker options hold."""

from __future__ import annotations

import asyncio

from procrastinate import JobContext

import procjobs
from tests.engine.conftest import Drain


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
