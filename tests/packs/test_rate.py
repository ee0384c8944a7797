"""Many notifications leave at exactly the rate that is set, whoever sends them: never above it in any second."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from procjobs import demo
from procjobs.db import Database
from tests.mail_server import MailServer
from tests.processes import Forked, environment, wait_for

#: By hand: PROCJOBS_TEST_NOTIFICATIONS=10000 PROCJOBS_TEST_RATE=500
COUNT = int(os.environ.get("PROCJOBS_TEST_NOTIFICATIONS", "450"))
RATE = int(os.environ.get("PROCJOBS_TEST_RATE", "30"))


def _serve(port: Any) -> None:
    async def run() -> None:
        async with MailServer() as server:
            port.value = server.port
            await asyncio.Event().wait()

    asyncio.run(run())


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a mail server in a process of its own."""
    found = multiprocessing.Value("i", 0)
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(found,), daemon=True)
    process.start()
    wait_for(lambda: found.value)
    yield found.value
    process.kill()


@pytest.mark.slow
async def test_two_workers_send_at_exactly_the_rate(
    dsn: str, db: Database, sql: Any, tmp_path: Path, port: int, eventually: Any
) -> None:
    facts = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    sql("select procjobs.set_limit('notifications', queue => 'notifications', max_running => 100, rate => %s, "
        "per => '1 second')", RATE)  # fmt: skip
    sql(
        "select procjobs.enqueue_notification_job(%s, content => '{\"subject\": \"x\", \"body\": \"y\"}') "
        "from generate_series(1, %s)",
        facts.recipient_id, COUNT,
    )  # fmt: skip
    env = environment(DATABASE_URL=dsn, PROCJOBS_SMTP_HOST="127.0.0.1", PROCJOBS_SMTP_PORT=str(port))
    workers = [
        Forked(["worker", "--builtin", "--concurrency", "40"], env, cwd=tmp_path, out=tmp_path / f"w{number}")
        for number in range(2)
    ]
    try:
        done = "select count(*) from procjobs.notification_jobs where status = 'sent'"
        await eventually(lambda: sql.one(done) == COUNT, COUNT / RATE * 2 + 20)
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait(10)

    ((fullest, took, share),) = sql(
        """
        with starts as (
          select pj_started.at, l.worker
          from procjobs.notification_delivery_logs l
          join procjobs.notification_jobs n on n.id = l.job_id
          cross join lateral (select h.started_at as at from procjobs.job_history h where h.id = n.job_id) pj_started
        ),
        spans as (
          select count(*) over (order by at range between current row and '999999 microseconds' following) as n
          from starts
        )
        select
          (select max(n) from spans),
          (select extract(epoch from max(at) - min(at)) from starts),
          (select min(n)::float / sum(n) from (select count(*) as n from starts group by worker) w)
        """
    )
    ideal = COUNT / RATE - 1  # the first second's worth may leave at once
    print(f"{COUNT} at {RATE}/s: at most {fullest} within any second, {took:.2f} s (ideal {ideal:.2f}), {share:.0%}")
    assert fullest <= RATE
    assert ideal - 0.1 <= took <= (ideal + 1) * 1.1
    assert share > 0.1  # both worked
