"""Many notifications leave at exactly the rate that is set: by starts, by ends, and as the mail server sees them.

A mail arrives some time after its start, one later than another. The rate of notifications counts runs, each until a
period after its end: whenever within its run a mail arrives, no second sees more than the rate.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import statistics
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from procjobs import demo
from procjobs.app import default_app
from procjobs.db import Database
from procjobs.settings import Settings
from tests.conftest import Sql
from tests.mail_server import HOLD, MailServer
from tests.processes import Forked, environment, wait_for

#: By hand: PROCJOBS_TEST_RATE=10000 sends so many at 500 a second, PROCJOBS_TEST_RATE=10000:100 at 100. How fast the
#: machine can send is then told, not tested.
_BY_HAND = os.environ.get("PROCJOBS_TEST_RATE")
_count, _, _rate = (_BY_HAND or "300:40").partition(":")
COUNT, RATE = int(_count), int(_rate or 500)
RUNNING = RATE // 2


def _serve(port: Any, over: Any, found: Path) -> None:
    """A mail server until `over`; then it writes down which notification it took when."""

    async def run() -> None:
        async with MailServer() as server:
            port.value = server.port
            await asyncio.to_thread(over.wait)
        ids = [re.findall(rb"^X-Notification-Id: (\S+)", raw, re.MULTILINE)[0].decode() for raw in server.raw]
        found.with_suffix(".part").write_text(json.dumps(dict(zip(ids, server.taken_at, strict=True))))
        found.with_suffix(".part").rename(found)

    asyncio.run(run())


class Post:
    """A mail server in a process of its own."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        port, self._over, self._found = context.Value("i", 0), context.Event(), folder / "taken.json"
        self._process = context.Process(target=_serve, args=(port, self._over, self._found), daemon=True)
        self._process.start()
        wait_for(lambda: port.value)
        self.port: int = port.value

    def taken(self) -> dict[str, float]:
        """Ends it; when it took each notification, in epoch seconds."""
        self._over.set()
        wait_for(self._found.exists)
        found: dict[str, float] = json.loads(self._found.read_text())
        return found

    def kill(self) -> None:
        self._process.kill()


@pytest.fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    running = Post(tmp_path)
    yield running
    running.kill()


@pytest.fixture
async def facts(db: Database, sql: Sql) -> demo.DemoFacts:
    """The demo without its own notifications."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    return found


def enqueue(sql: Sql, facts: demo.DemoFacts, count: int) -> None:
    sql(
        "select procjobs.enqueue_notification_job(%s, content => '{\"subject\": \"x\", \"body\": \"y\"}') "
        "from generate_series(1, %s)",
        facts.recipient_id, count,
    )  # fmt: skip


def limit(sql: Sql, rate: int, running: int, seconds: int = 1) -> None:
    sql(
        "select procjobs.set_limit('notifications', queue => 'notifications', max_running => %s, rate => %s, "
        "per => make_interval(secs => %s))",
        running, rate, seconds,
    )  # fmt: skip


def fullest(times: Sequence[float], span: float = 1.0) -> int:
    """The most of them within any half-open span of so many seconds."""
    times, first, most = sorted(times), 0, 0
    for last, time in enumerate(times):
        while time - times[first] >= span:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.slow
async def test_two_workers_send_at_exactly_the_rate(
    dsn: str, sql: Sql, facts: demo.DemoFacts, tmp_path: Path, post: Post, eventually: Callable[..., Any]
) -> None:
    limit(sql, RATE, RUNNING)
    enqueue(sql, facts, COUNT)
    env = environment(DATABASE_URL=dsn, PROCJOBS_SMTP_HOST="127.0.0.1", PROCJOBS_SMTP_PORT=str(post.port))
    workers = [
        Forked(["worker", "--builtin", "--concurrency", "40"], env, cwd=tmp_path, out=tmp_path / f"w{number}")
        for number in range(2)
    ]
    try:
        done = "select count(*) from procjobs.job_history where status = 'succeeded'"
        await eventually(lambda: sql.one(done) == COUNT, COUNT / min(RATE, 25) + 30)
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait(10)

    rows = sql(
        "select n.id::text, l.worker, extract(epoch from h.started_at)::float8, "
        "extract(epoch from h.finished_at - h.started_at)::float8 from procjobs.notification_jobs n "
        "join procjobs.notification_delivery_logs l on l.job_id = n.id join procjobs.job_history h on h.id = n.job_id"
    )
    started = {notification: at for notification, _, at, _ in rows}
    names = [worker for _, worker, _, _ in rows]
    shares = [names.count(name) / COUNT for name in set(names)]
    lasts = statistics.quantiles((lasted for *_, lasted in rows), n=10)[-1]
    taken = post.taken()
    assert len(rows) == COUNT and taken.keys() == started.keys()

    by_start, by_arrival = fullest([*started.values()]), fullest([*taken.values()])
    took = max(started.values()) - min(started.values())
    ideal = COUNT / RATE - 1  # the first second's worth may leave at once
    delays = sorted(taken[notification] - at for notification, at in started.items())
    print(
        f"{COUNT} at {RATE}/s, {RUNNING} at a time: {took:.2f} s (ideal {ideal:.2f}), within any second at most "
        f"{by_start} starts and {by_arrival} arrivals, {statistics.median(delays) * 1000:.0f} ms after their start, "
        f"{delays[0] * 1000:.0f} to {delays[-1] * 1000:.0f}; shares {[f'{share:.0%}' for share in shares]}"
    )
    assert by_start <= RATE
    for seconds in (1, 2, 5):
        assert fullest([*taken.values()], seconds) <= RATE * seconds
    assert ideal - 0.1 <= took
    assert _BY_HAND or took <= (ideal + 1) * (1.2 + lasts)  # a place is free a second after the run
    assert len(shares) == 2 and min(shares) > 0.1  # both worked


@pytest.mark.slow
async def test_a_mail_server_sees_no_more_than_the_rate_when_mails_are_held_on_their_way(
    dsn: str, sql: Sql, facts: demo.DemoFacts, eventually: Callable[..., Any]
) -> None:
    rate, running, seconds, count = 8, 4, 2, 20
    limit(sql, rate, running, seconds)
    enqueue(sql, facts, count)
    async with MailServer(replies={"DATA": [HOLD] * running}) as server:
        app = default_app(Settings(dsn=dsn, smtp_host="127.0.0.1", smtp_port=server.port))
        async with app.open_async():
            worker = asyncio.create_task(app.run_worker_async(concurrency=20, install_signal_handlers=False))
            await eventually(lambda: server.held == running)
            over = "select clock_timestamp() - max(pj_started_at) > make_interval(secs => %s) from procrastinate_jobs"
            await eventually(lambda: sql.one(over, seconds))  # these starts are longer ago than the rate looks back
            assert sql.one("select count(*) from procrastinate_jobs where status = 'doing'") == running
            server.released.set()
            await eventually(lambda: sql.one("select count(*) from procjobs.job_history") == count, 30)
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker
    starts = [at for (at,) in sql("select extract(epoch from started_at)::float8 from procjobs.job_history")]
    assert fullest(starts, seconds) <= rate
    assert fullest(server.taken_at, seconds) <= rate
