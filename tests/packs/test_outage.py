"""A mail server that is away or hangs: notifications wait and lose nothing, and whoever enqueues does not notice."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from procjobs import demo
from procjobs.app import App, default_app
from procjobs.db import Database
from procjobs.packs.notifications import tell_metrics
from procjobs.settings import Settings
from tests.engine.conftest import FAST
from tests.mail_server import HANG, MailServer

CONTENT = '{"subject": "Test", "body": "Hello!"}'


@pytest.fixture
async def recipient(db: Database, sql: Any) -> UUID:
    """Ingrid, of the demo without its own notifications."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    return found.recipient_id


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


def app_of(dsn: str, port: int, **more: str) -> App:
    environ = {
        "DATABASE_URL": dsn,
        "PROCJOBS_SMTP_HOST": "127.0.0.1",
        "PROCJOBS_SMTP_PORT": str(port),
        "PROCJOBS_SMTP_TIMEOUT": "0.3",
        "PROCJOBS_MAIL_FROM": "Team <team@harbourlane.example>",
    }
    return default_app(Settings.load(environ={**environ, **more}))


def enqueue(sql: Any, recipient: UUID, count: int = 1) -> None:
    sql(
        "select procjobs.enqueue_notification_job(%s, content => %s::jsonb) from generate_series(1, %s)",
        recipient, CONTENT, count,
    )  # fmt: skip


def breaker(sql: Any) -> str:
    found: str = sql.one("select state from procjobs.breaker_list where name = 'smtp'")
    return found


def sent(sql: Any) -> int:
    found: int = sql.one("select count(*) from procjobs.notification_jobs where status = 'sent'")
    return found


async def test_jobs_wait_one_tries_and_all_are_sent_by_themselves(
    dsn: str, sql: Any, recipient: UUID, server: MailServer, eventually: Any
) -> None:
    """The server is down; then it is back. Whoever failed fails a real try; the others spend none."""
    sql("select procjobs.set_breaker('smtp', queue => 'notifications', tag => 'email', failures => 3, "
        "cool_down => '0.3 seconds', longest => '0.6 seconds')")  # fmt: skip
    sql("update procjobs.tasks set backoff_base = '10 milliseconds'")
    port = server.port
    await server.__aexit__()
    enqueue(sql, recipient, 20)
    app = app_of(dsn, port)
    async with app.open_async():
        worker = asyncio.create_task(app.run_worker_async(**FAST))
        await eventually(lambda: sql.one("select openings from procjobs.breakers where name = 'smtp'") >= 3)
        tries = sql.one("select count(*) from procjobs.notification_delivery_logs")
        assert tries <= 9  # five at once, and one probe each time
        assert sql.one("select count(*) from public.procrastinate_jobs where attempts = 0") >= 15
        assert sql.one("select count(*) from public.procrastinate_jobs where status = 'failed'") == 0
        async with MailServer(port=port) as back:
            sql(
                "update public.procrastinate_jobs set scheduled_at = now() "
                "where status = 'todo' and scheduled_at > now()"
            )
            await eventually(lambda: sent(sql) == 20)
            assert len(back.raw) == 20
        assert breaker(sql) == "closed"
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def test_enqueueing_takes_no_notice_of_a_server_that_hangs(
    dsn: str, sql: Any, recipient: UUID, server: MailServer, eventually: Any
) -> None:
    server.replies["MAIL"] = [HANG] * 1000
    app = app_of(dsn, server.port, PROCJOBS_SMTP_TIMEOUT="60")
    async with app.open_async():
        worker = asyncio.create_task(
            app.run_worker_async(**{**FAST, "kill_timeout": 0.5, "shutdown_graceful_timeout": 0})
        )
        enqueue(sql, recipient, 10)
        await server.hanging.wait()
        took = []
        async with Database(dsn) as db:
            for _ in range(200):
                began = time.perf_counter()
                await db.value("enqueue_notification_job", recipient=recipient, content={"subject": "x", "body": "y"})
                took.append(time.perf_counter() - began)
        p99 = statistics.quantiles(took, n=100)[98]
        print(f"enqueueing: median {statistics.median(took) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
        assert p99 < 0.2
        assert sql.one("select count(*) from procjobs.notification_jobs where status = 'pending'") == 205
        worker.cancel()
        server.hang_up()
        await asyncio.gather(worker, return_exceptions=True)


async def test_a_refused_recipient_is_no_failure_of_the_server(
    dsn: str, sql: Any, recipient: UUID, server: MailServer
) -> None:
    sql("select procjobs.set_breaker('smtp', queue => 'notifications', tag => 'email', failures => 1)")
    server.replies["RCPT"] = ["550 5.7.1 not wanted here", "450 4.2.1 busy"]
    enqueue(sql, recipient, 2)
    app = app_of(dsn, server.port)
    async with app.open_async():
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert breaker(sql) == "closed"
    server.replies["MAIL"] = ["421 4.3.2 closing down"] * 2
    enqueue(sql, recipient, 1)
    async with app.open_async():
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert breaker(sql) == "open"


async def test_five_at_a_time_and_fifty_a_second_out_of_the_box_and_as_an_administrator_says(sql: Any) -> None:
    assert sql("select queue, max_running, rate, per::text from procjobs.limit_use where name = 'notifications'") == [
        ("notifications", 5, 50, "00:00:01")
    ]


async def test_a_worker_says_now_and_then_how_its_notifications_fare(
    dsn: str, sql: Any, recipient: UUID, server: MailServer, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    enqueue(sql, recipient, 3)
    app = app_of(dsn, server.port, PROCJOBS_NOTIFICATION_METRICS_INTERVAL="0.5")

    def lines() -> list[logging.LogRecord]:
        return [found for found in caplog.records if getattr(found, "action", "") == "notification_metrics"]

    with caplog.at_level(logging.INFO, "procjobs.notifications"):
        async with app.open_async():
            worker = asyncio.create_task(app.run_worker_async(**FAST, name="ann"))
            await eventually(lambda: any(getattr(line, "sent", 0) == 3 for line in lines()))
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
    line: Any = next(line for line in lines() if getattr(line, "sent", 0) == 3)
    assert (line.worker, line.deferred, line.waiting, line.methods["email"]["sent"]) == ("ann", 0, 0, 3)
    assert line.breakers["smtp"] == "closed"
    assert line.p95_ms >= line.p50_ms >= 0
    assert "ingrid" not in str(line.__dict__).lower()


async def test_out_of_the_box_that_line_comes_every_minute(
    dsn: str, sql: Any, server: MailServer, eventually: Any, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The loop's clock is moved on."""
    loop, ahead = asyncio.get_running_loop(), 0.0
    true_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: true_time() + ahead)

    def seconds() -> list[float]:
        return [found.seconds for found in caplog.records if getattr(found, "action", "") == "notification_metrics"]  # type: ignore[attr-defined]

    app = app_of(dsn, server.port)
    with caplog.at_level(logging.INFO, "procjobs.notifications"):
        async with app.open_async():
            telling = asyncio.create_task(tell_metrics(app, "ann"))
            for minute in range(2):
                await turns()
                ahead += 55  # of the minute, which began a moment ago
                await turns()
                assert seconds() == [60.0] * minute
                ahead += 5
                await eventually(lambda: len(seconds()) == minute + 1)  # noqa: B023
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
    assert seconds() == [60.0, 60.0]


async def turns() -> None:
    """Whoever has something to do by now does it."""
    for _ in range(100):
        await asyncio.sleep(0)


def fail(sql: Any, count: int) -> None:
    """So many notifications failed just now."""
    sql(
        "insert into procjobs.notification_jobs (address, notification_type, urgency, delivery_method, content, "
        "status, scheduled_for, created_at, created_by, processed_at) "
        "select 'a@b.example', 'x', 'normal', 'email', '{}', 'failed', now(), now(), 'me', now() "
        "from generate_series(1, %s)",
        count,
    )


def wait(sql: Any, count: int) -> None:
    """So many notifications wait."""
    sql(
        "insert into procrastinate_jobs (task_name, queue_name, args) "
        "select 'procjobs.send_notification', 'notifications', '{\"notification_id\": \"x\"}' "
        "from generate_series(1, %s)",
        count,
    )


def test_too_many_failed_ones_and_too_many_waiting_are_alerts_that_close_by_themselves(sql: Any) -> None:
    def watch() -> list[tuple[str, bool]]:
        sql("select procjobs.watch_notifications()")
        sql("select procjobs.watch_backlog()")
        found: list[tuple[str, bool]] = sql("select kind, closed_at is null from procjobs.alerts order by kind")
        return found

    sql("select procjobs.set_failed_alert(2, '10 minutes'), procjobs.set_backlog_alert(2)")
    fail(sql, 2)
    assert watch() == []
    fail(sql, 1)
    # Held back by a breaker or a limit is waiting, too.
    wait(sql, 3)
    sql("update procrastinate_jobs set pj_waits_for = 'limit', pj_held_by = 'breaker:smtp'")
    assert watch() == [("backlog", True), ("notifications_failed", True)]
    sql("update procjobs.notification_jobs set processed_at = now() - interval '11 minutes'")
    sql("delete from procrastinate_jobs")
    assert watch() == [("backlog", False), ("notifications_failed", False)]


def test_out_of_the_box_over_100_failed_over_1000_waiting_and_an_open_breaker_are_alerts(sql: Any) -> None:
    def alerts() -> list[tuple[str, str, str]]:
        sql("select procjobs.watch_notifications()")
        sql("select procjobs.watch_backlog()")
        found: list[tuple[str, str, str]] = sql(
            "select kind, subject, message from procjobs.alerts where closed_at is null order by kind"
        )
        return found

    fail(sql, 100)
    wait(sql, 1000)
    for _ in range(4):
        assert sql.one("select procjobs.report_outcome('smtp', false)") == "closed"
    assert alerts() == []
    fail(sql, 1)
    wait(sql, 1)
    assert sql.one("select procjobs.report_outcome('smtp', false)") == "open"
    backlog, breaker_open, failed = alerts()
    assert backlog == ("backlog", "notifications", "more than 1000 jobs wait in queue notifications")
    assert breaker_open[:2] == ("breaker_open", "smtp") and breaker_open[2].startswith("breaker smtp is open since ")
    assert failed == ("notifications_failed", "notifications", "more than 100 notifications failed within 1 h 0 min")

    sql("update procjobs.notification_jobs set processed_at = now() - interval '61 minutes'")
    sql("delete from procrastinate_jobs where id = (select min(id) from procrastinate_jobs)")
    sql("select procjobs.close_breaker('smtp')")
    assert alerts() == []
