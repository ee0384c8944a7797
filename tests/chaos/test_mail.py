"""Workers that are killed, frozen and told to stop in the middle of a mail, at each point of the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from tests.chaos.harness.fleet import Worker
from tests.chaos.harness.site import GENEROUS, Site
from tests.mail_server import HOLD, MailServer

Start = Callable[..., Worker]
Wait = Callable[..., Any]
LOST = "the worker was lost during the try: the message may have arrived"
HELD = "it may have arrived already, and is not sent twice: say what became of it with procjobs.resolve_delivery"


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
async def recipient(site: Site, db: Database) -> UUID:
    """Ingrid, of the demo without its own notifications."""
    found = await demo.seed(db)
    site.sql("delete from public.procrastinate_jobs")
    site.sql("delete from procjobs.notification_jobs")
    site.sql("delete from chaos.transitions")
    return found.recipient_id


@pytest.fixture
def start(site: Site, server: MailServer) -> Start:
    """A worker that sends by that server."""

    def begin(**options: Any) -> Worker:
        return site.fleet.start(
            app="tests.chaos.postman.app",
            PROCJOBS_SMTP_HOST="127.0.0.1",
            PROCJOBS_SMTP_PORT=str(server.port),
            PROCJOBS_MAIL_FROM="Team <team@harbourlane.example>",
            **options,
        )

    return begin


@pytest.fixture
def wait(site: Site, eventually: Wait) -> Wait:
    """Waits as long as a process of the chaos tests may take."""
    return lambda condition: eventually(condition, GENEROUS)


def enqueue(site: Site, recipient: UUID) -> UUID:
    found: UUID = site.sql.one(
        'select procjobs.enqueue_notification_job(%s, content => \'{"subject": "Test", "body": "Hello!"}\')', recipient
    )
    return found


def status(site: Site, notification: UUID) -> str:
    found: str = site.sql.one("select status from procjobs.notification_jobs where id = %s", notification)
    return found


def log(site: Site, columns: str = "worker, status, error") -> list[tuple[Any, ...]]:
    return site.sql(f"select {columns} from procjobs.notification_delivery_logs order by id")


def ends(site: Site) -> list[tuple[Any, ...]]:
    """How the jobs ended: status, attempts spent, crashes."""
    return site.sql("select status::text, attempts, crashes from procjobs.job_history order by id")


def check(site: Site) -> None:
    """Nothing else is wrong. What SQL enqueued is in no client's ledger."""
    found = [violation for violation in site.violations() if violation.what != "nobody enqueued it"]
    assert not found, "\n".join(map(str, found)) + "\n" + site.logs()


async def over(worker: Worker) -> int:
    """Its exit code; the mail server goes on meanwhile."""
    return await asyncio.to_thread(worker.exit_code)


@contextmanager
def nobody_can_write(site: Site, notification: UUID) -> Iterator[None]:
    """The notification's row is locked: the end of a try is not written down. Whoever waits for that at the end of the
    block, of a process that is dead by then, will not do it any more."""
    with psycopg.connect(site.dsn) as other:
        other.execute("select from procjobs.notification_jobs where id = %s for update", [notification])
        yield
        site.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and wait_event_type = 'Lock' and query like '%finish_delivery%'"
        )


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "policy", "became"),
    [
        ("MAIL", "retry", ("unknown", LOST)),
        ("RCPT", "retry", ("unknown", LOST)),
        ("MAIL", "hold", ("deferred", "the worker was lost before the message left")),
        ("RCPT", "hold", ("deferred", "the worker was lost before the message left")),
    ],
)
async def test_killed_before_the_message_another_worker_sends_it_and_it_arrives_once(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait,
    stage: str, policy: str, became: tuple[str, str],
) -> None:  # fmt: skip
    site.sql("select procjobs.set_delivery_policy('email', %s)", policy)
    server.replies[stage] = [HOLD]
    notification = enqueue(site, recipient)
    first = start()
    await wait(lambda: server.held == 1)
    assert log(site) == [("w0", "sending", None)]
    first.kill()
    start()
    await wait(lambda: ends(site))
    assert [message["X-Notification-Id"] for message in server.messages] == [str(notification)]
    assert status(site, notification) == "sent"
    assert log(site) == [("w0", *became), ("w1", "sent", None)]
    assert ends(site) == [("succeeded", 1, 1)]
    check(site)


async def kill_in_doubt(
    site: Site, server: MailServer, notification: UUID, start: Start, wait: Wait, point: str
) -> None:
    """A worker dies when the server has the message, before its reply or after it."""
    server.replies["DATA"] = [HOLD]
    worker = start()
    await wait(lambda: server.held == 1)
    if point == "before the reply":
        worker.kill()
        return
    with nobody_can_write(site, notification):
        server.released.set()
        await wait(site.waiting)
        worker.kill()
    await wait(lambda: not site.waiting())


POINTS = ["before the reply", "before the end is written down"]


@pytest.mark.parametrize("point", POINTS)
async def test_killed_after_the_message_it_is_in_doubt_and_sent_again_under_the_same_id(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait, point: str
) -> None:
    notification = enqueue(site, recipient)
    await kill_in_doubt(site, server, notification, start, wait, point)
    assert (len(server.raw), log(site)) == (1, [("w0", "sending", None)])
    start()
    await wait(lambda: ends(site))
    assert [message["Message-ID"] for message in server.messages] == [f"<{notification}@harbourlane.example>"] * 2
    assert status(site, notification) == "sent"
    assert log(site) == [("w0", "unknown", LOST), ("w1", "sent", None)]
    assert ends(site) == [("succeeded", 1, 1)]
    check(site)


@pytest.mark.parametrize("point", POINTS)
async def test_killed_after_the_message_it_is_held_where_the_policy_says_so(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait, point: str
) -> None:
    site.sql("select procjobs.set_delivery_policy('email', 'hold')")
    notification = enqueue(site, recipient)
    await kill_in_doubt(site, server, notification, start, wait, point)
    start()
    await wait(lambda: ends(site))
    assert len(server.raw) == 1, "nobody sends it a second time"
    assert status(site, notification) == "failed"
    assert log(site) == [("w0", "unknown", LOST)]
    assert site.sql("select notification_id, policy from procjobs.unresolved_deliveries") == [(notification, "hold")]
    assert ends(site) == [("cancelled", 1, 1)]
    assert site.sql.one("select last_error from procjobs.notification_jobs") == HELD

    assert site.sql.one("select procjobs.resolve_delivery(%s, 'lost')", notification) == "pending"
    await wait(lambda: status(site, notification) == "sent")
    assert len(server.raw) == 2
    assert log(site) == [("w0", "unknown", LOST), ("w1", "sent", None)]
    check(site)


async def test_frozen_before_the_reply_both_tries_are_on_record(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait
) -> None:
    """Taken for dead, another sends it again; the first, when it goes on, stops waiting for the reply."""
    server.replies["DATA"] = [HOLD]
    notification = enqueue(site, recipient)
    first = start()
    await wait(lambda: server.held == 1)
    first.freeze()
    start()
    await wait(lambda: status(site, notification) == "sent")
    first.thaw()
    await wait(lambda: site.sql.one("select count(*) from procjobs.worker_state where dead_at is null") == 2)
    first.terminate(0)
    assert await over(first) == 0
    assert log(site) == [("w0", "unknown", LOST), ("w1", "sent", None)]
    assert [message["Message-ID"] for message in server.messages] == [f"<{notification}@harbourlane.example>"] * 2
    await wait(lambda: ends(site))
    assert ends(site) == [("succeeded", 1, 1)]
    check(site)


# -- told to stop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["RCPT", "DATA"])
async def test_sigterm_lets_the_mails_end_and_leaves_the_rest_to_others(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait, stage: str
) -> None:
    server.replies[stage] = [HOLD] * 2
    notifications = {str(enqueue(site, recipient)) for _ in range(6)}
    first = start(concurrency=2, shutdown_timeout=GENEROUS)
    await wait(lambda: server.held == 2)
    first.terminate(0)
    await wait(lambda: site.sql.one("select draining_at is not null from procjobs.worker_state"))
    assert first.alive
    server.released.set()
    assert await over(first) == 0
    assert len(server.raw) == 2
    assert log(site, "worker, status") == [("w0", "sent")] * 2
    query = "select status::text, attempts, pj_crashes, count(*)::int from procrastinate_jobs group by 1, 2, 3"
    assert site.sql(query) == [("todo", 0, 0, 4)]

    start()
    await wait(lambda: len(ends(site)) == 6)
    assert {message["X-Notification-Id"] for message in server.messages} == notifications
    assert len(server.raw) == 6
    assert log(site, "worker, status") == [("w0", "sent")] * 2 + [("w1", "sent")] * 4
    assert ends(site) == [("succeeded", 1, 0)] * 6
    check(site)


async def test_sigterm_after_the_reply_the_end_is_written_down_first(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait
) -> None:
    server.replies["DATA"] = [HOLD]
    notification = enqueue(site, recipient)
    worker = start(shutdown_timeout=GENEROUS)
    await wait(lambda: server.held == 1)
    with psycopg.connect(site.dsn) as other:
        other.execute("select from procjobs.notification_jobs where id = %s for update", [notification])
        server.released.set()
        await wait(site.waiting)
        worker.terminate(0)
        await wait(lambda: site.sql.one("select draining_at is not null from procjobs.worker_state"))
    assert await over(worker) == 0
    assert (len(server.raw), log(site)) == (1, [("w0", "sent", None)])
    assert (status(site, notification), ends(site)) == ("sent", [("succeeded", 1, 0)])
    check(site)


@pytest.mark.parametrize(("stage", "mails"), [("RCPT", 1), ("DATA", 2)])
async def test_sigterm_a_mail_that_does_not_end_in_time_is_given_back(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait, stage: str, mails: int
) -> None:
    """No attempt is spent. What the server may have is in doubt: it is sent again, under the same Message-ID."""
    server.replies[stage] = [HOLD]
    notification = enqueue(site, recipient)
    first = start(shutdown_timeout=0.2)
    await wait(lambda: server.held == 1)
    first.terminate(0)
    assert await over(first) == 0
    assert site.sql("select status::text, attempts, pj_crashes from procrastinate_jobs") == [("todo", 0, 0)]
    start()
    await wait(lambda: ends(site))
    assert [message["Message-ID"] for message in server.messages] == [f"<{notification}@harbourlane.example>"] * mails
    assert log(site) == [("w0", "unknown", LOST), ("w1", "sent", None)]
    assert (status(site, notification), ends(site)) == ("sent", [("succeeded", 1, 0)])
    check(site)


# -- with a safeguard taken out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("hold_delivery", "procjobs.after_unknown(p_job.delivery_method) = 'retry'", "true"),
        ("doubt_lost_tries", "l.status = 'sending'", "false"),
    ],
    ids=["the policy is not asked", "a lost try is not in doubt"],
)
async def test_without_the_doubt_it_arrives_twice(
    site: Site, server: MailServer, recipient: UUID, start: Start, wait: Wait,
    function: str, old: str, new: str,
) -> None:  # fmt: skip
    site.replace(function, old, new)
    site.sql("select procjobs.set_delivery_policy('email', 'hold')")
    notification = enqueue(site, recipient)
    await kill_in_doubt(site, server, notification, start, wait, "before the reply")
    start()
    await wait(lambda: ends(site))
    assert (len(server.raw), status(site, notification)) == (2, "sent")
