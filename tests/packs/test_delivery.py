"""Every try to deliver a notification is on record, and its state is true whatever became of its queue job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from procjobs import demo
from procjobs.app import App, default_app
from procjobs.db import Calls, Database
from procjobs.errors import DatabaseUnavailable
from procjobs.letters import Brand
from procjobs.mail import Ambiguous, Deferred, Mailer, Refused, Sent
from procjobs.packs.notifications import NothingToSend, deliver
from procjobs.settings import Settings
from tests.mail_server import DROP, HANG, HOLD, MailServer

CONTENT = '{"subject": "Test", "body": "Hello!"}'
Deliver = Callable[..., Awaitable[Any]]


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
async def facts(db: Database, sql: Any) -> demo.DemoFacts:
    """The demo without its own notifications."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    return found


@pytest.fixture
def notification(sql: Any, facts: demo.DemoFacts) -> UUID:
    """One to Ingrid, that waits."""
    return enqueue(sql, facts)


@pytest.fixture
async def post(server: MailServer) -> AsyncIterator[Mailer]:
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>", timeout=0.5)
    yield mailer
    await mailer.close()


@pytest.fixture
def attempt(db: Database, post: Mailer) -> Deliver:
    """One try, as a worker makes it."""
    return lambda notification, worker="w1": deliver(db, post, Brand(), notification, worker=worker)


def enqueue(sql: Any, facts: demo.DemoFacts, delay: int = 0) -> UUID:
    found: UUID = sql.one(
        "select procjobs.enqueue_notification_job(%s, %s, null, 'immediate', 'normal', 'email', %s::jsonb, %s)",
        facts.recipient_id,
        facts.group_id,
        CONTENT,
        delay,
    )
    return found


def state(sql: Any, notification: UUID) -> tuple[Any, ...]:
    """status, retry_count, last_error and whether it is over."""
    (found,) = sql(
        """
        select status, retry_count, last_error, processed_at is not null
        from procjobs.notification_jobs
        where id = %s
        """,
        notification,
    )
    return tuple(found)


def log(sql: Any, notification: UUID) -> list[tuple[Any, ...]]:
    """attempt, status, smtp_code, smtp_reply and error of each try."""
    found: list[tuple[Any, ...]] = sql(
        """
        select attempt, status, smtp_code, smtp_reply, error
        from procjobs.notification_delivery_logs
        where job_id = %s
        order by attempt
        """,
        notification,
    )
    return found


def queue_job(sql: Any, notification: UUID) -> int:
    found: int = sql.one("select job_id from procjobs.notification_jobs where id = %s", notification)
    return found


# One try


async def test_a_sent_one_says_when_by_whom_and_what_the_server_replied(
    sql: Any, notification: UUID, attempt: Deliver, server: MailServer
) -> None:
    assert await attempt(notification) == Sent(250, "queued as 1")

    assert state(sql, notification) == ("sent", 0, None, True)
    assert sql(
        """
        select l.status, l.delivery_method, l.address, l.worker, l.provider, l.smtp_code, l.smtp_reply, l.error,
          l.message_id = n.message_id, l.started_at <= l.finished_at, l.took_ms between 0 and 10000
        from procjobs.notification_delivery_logs l
        join procjobs.notification_jobs n on n.id = l.job_id
        where n.id = %s
        """,
        notification,
    ) == [
        (
            "sent",
            "email",
            "ingrid@family.example",
            "w1",
            f"127.0.0.1:{server.port}",
            250,
            "queued as 1",
            None,
            True,
            True,
            True,
        )
    ]


async def test_the_mail_is_whole(notification: UUID, attempt: Deliver, server: MailServer) -> None:
    await attempt(notification)
    (message,) = server.messages
    assert server.recipients == [["ingrid@family.example"]]
    assert (message["Subject"], message["To"]) == ("Test", "Ingrid <ingrid@family.example>")
    assert message["Message-ID"] == f"<{notification}@harbourlane.example>"
    assert message["X-Notification-Id"] == str(notification)
    text, html = (part.get_content() for part in message.iter_parts())
    for part in (text, html):
        assert all(words in part for words in ("Hello Ingrid,", "Hello!", "The Lindgrens", "Harbour Lane"))


async def test_a_temporary_reply_leaves_it_waiting_for_the_next_try(
    sql: Any, notification: UUID, attempt: Deliver, server: MailServer
) -> None:
    server.replies["RCPT"] = ["450 4.2.1 try later"]
    assert await attempt(notification) == Deferred(450, "4.2.1 try later")
    assert state(sql, notification) == ("pending", 0, "450 4.2.1 try later", False)
    assert await attempt(notification, "w2") == Sent(250, "queued as 1")
    assert state(sql, notification) == ("sent", 1, "450 4.2.1 try later", True)
    assert log(sql, notification) == [
        (1, "deferred", 450, "4.2.1 try later", "450 4.2.1 try later"),
        (2, "sent", 250, "queued as 1", None),
    ]


async def test_a_final_reply_is_the_end(sql: Any, notification: UUID, attempt: Deliver, server: MailServer) -> None:
    server.replies["RCPT"] = ["550 5.1.1 no such user"]
    assert await attempt(notification) == Refused(550, "5.1.1 no such user")
    assert state(sql, notification) == ("failed", 0, "550 5.1.1 no such user", True)
    assert log(sql, notification) == [(1, "refused", 550, "5.1.1 no such user", "550 5.1.1 no such user")]


@pytest.mark.parametrize("end", [HANG, DROP])
async def test_what_may_have_arrived_is_unknown_and_tried_again_under_the_same_id(
    sql: Any, notification: UUID, attempt: Deliver, server: MailServer, end: str
) -> None:
    server.replies["DATA"] = [end]
    assert isinstance(await attempt(notification), Ambiguous)
    assert state(sql, notification)[0] == "pending"
    assert [row[:3] for row in log(sql, notification)] == [(1, "unknown", None)]

    assert isinstance(await attempt(notification), Sent)
    assert server.messages[0]["Message-ID"] == f"<{notification}@harbourlane.example>"
    assert [row[1] for row in log(sql, notification)] == ["unknown", "sent"]


async def test_a_sent_one_is_not_sent_again(notification: UUID, attempt: Deliver, server: MailServer) -> None:
    await attempt(notification)
    assert await attempt(notification) == NothingToSend(sent=True, reason="it was sent already")
    assert len(server.raw) == 1


async def test_a_recipient_who_left_meanwhile_gets_nothing(
    sql: Any, notification: UUID, attempt: Deliver, server: MailServer, facts: demo.DemoFacts
) -> None:
    sql("delete from procjobs_demo.recipients where id = %s", facts.recipient_id)
    outcome = await attempt(notification)
    assert isinstance(outcome, NothingToSend)
    assert not outcome.sent
    assert state(sql, notification) == ("failed", 0, outcome.reason, True)
    assert server.connections == 0


async def test_a_notification_that_does_not_exist_is_nothing_to_send(attempt: Deliver, facts: demo.DemoFacts) -> None:
    assert await attempt(uuid4()) == NothingToSend(sent=False, reason="there is no such notification")


async def test_a_try_whose_worker_vanished_is_unknown_and_its_late_news_do_not_count(
    db: Database, sql: Any, notification: UUID, attempt: Deliver
) -> None:
    begin: dict[str, Any] = {"p_notification": notification, "p_worker": "zombie", "p_domain": "harbourlane.example"}
    lost = await db.row("begin_delivery", **begin)
    assert state(sql, notification)[0] == "processing"
    assert isinstance(await attempt(notification), Sent)
    assert [row[:2] for row in log(sql, notification)] == [(1, "unknown"), (2, "sent")]

    finish = {"p_took_ms": 1, "p_provider": "x:25", "p_code": 550, "p_reply": "no", "p_error": "550 no"}
    assert not await db.value("finish_delivery", p_delivery=lost["delivery_id"], p_status="refused", **finish)
    assert state(sql, notification)[0] == "sent"


async def test_a_late_word_that_it_was_sent_does_count(db: Database, sql: Any, notification: UUID) -> None:
    begin: dict[str, Any] = {"p_notification": notification, "p_worker": "w", "p_domain": "harbourlane.example"}
    first = await db.row("begin_delivery", **begin)
    second = await db.row("begin_delivery", **begin)
    news = {"p_took_ms": 1, "p_provider": "x:25", "p_code": 250, "p_reply": "ok", "p_error": None}
    assert await db.value("finish_delivery", p_delivery=first["delivery_id"], p_status="sent", **news)
    later = {**news, "p_code": 450, "p_error": "450 later"}
    assert not await db.value("finish_delivery", p_delivery=second["delivery_id"], p_status="deferred", **later)
    assert not await db.value("finish_delivery", p_delivery=second["delivery_id"], p_status="sent", **news)
    assert state(sql, notification)[0] == "sent"


async def test_two_tries_at_once_take_turns_at_the_record(
    dsn: str, db: Database, sql: Any, notification: UUID, eventually: Any
) -> None:
    begin: dict[str, Any] = {"p_notification": notification, "p_worker": "w", "p_domain": "harbourlane.example"}
    async with db.transaction() as first:
        assert (await first.row("begin_delivery", **begin))["attempt"] == 1
        second = asyncio.create_task(db.row("begin_delivery", **begin))
        await eventually(lambda: sql.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock'"))
    assert (await second)["attempt"] == 2
    assert [row[:2] for row in log(sql, notification)] == [(1, "unknown"), (2, "sending")]


class Flaky(Calls):
    """The database, away for the first calls of one function."""

    def __init__(self, db: Database, function: str, times: int) -> None:
        self._db, self._function, self.left = db, function, times

    def connection(self) -> Any:
        return self._db.connection()

    async def rows(self, function: str, **args: Any) -> list[Any]:
        if function == self._function and self.left:
            self.left -= 1
            raise DatabaseUnavailable("the database is away")
        return await super().rows(function, **args)


async def test_a_result_outlives_a_database_that_is_away(
    db: Database, sql: Any, notification: UUID, post: Mailer, server: MailServer
) -> None:
    flaky = Flaky(db, "finish_delivery", times=2)
    assert isinstance(await deliver(flaky, post, Brand(), notification, worker="w1"), Sent)
    assert (flaky.left, len(server.raw)) == (0, 1)
    assert state(sql, notification)[0] == "sent"


async def test_without_a_try_on_record_nothing_is_sent(
    db: Database, notification: UUID, post: Mailer, server: MailServer
) -> None:
    with pytest.raises(DatabaseUnavailable):
        await deliver(Flaky(db, "begin_delivery_v2", times=1), post, Brand(), notification, worker="w1")
    assert server.connections == 0


# What becomes of the queue job becomes of the notification


def test_cancelling_the_waiting_job_cancels_it(sql: Any, notification: UUID) -> None:
    assert sql.one("select procjobs.cancel(%s, 'not any more')", queue_job(sql, notification)) == "cancelled"
    assert state(sql, notification) == ("cancelled", 0, "not any more", True)


def test_a_cancelled_one_taken_back_waits_again(sql: Any, notification: UUID) -> None:
    job = queue_job(sql, notification)
    sql("select procjobs.cancel(%s)", job)
    assert sql.one("select procjobs.retry(%s)", job)
    assert state(sql, notification)[0::3] == ("pending", False)


def test_deleting_the_job_by_hand_cancels_it(sql: Any, notification: UUID) -> None:
    sql("delete from public.procrastinate_jobs where id = %s", queue_job(sql, notification))
    assert state(sql, notification) == ("cancelled", 0, "the queue job was deleted", True)


def test_a_scheduled_one_is_cancelled_like_any_other(sql: Any, facts: demo.DemoFacts) -> None:
    later = enqueue(sql, facts, delay=60)
    sql("select procjobs.cancel(%s)", queue_job(sql, later))
    assert state(sql, later)[0] == "cancelled"


def test_a_dead_letter_fails_it_and_a_retry_by_hand_revives_it(sql: Any, notification: UUID) -> None:
    job = queue_job(sql, notification)
    sql("update public.procrastinate_jobs set status = 'doing' where id = %s", job)
    sql("update public.procrastinate_jobs set status = 'failed' where id = %s", job)
    assert state(sql, notification) == ("failed", 0, "the queue job ended without a delivery", True)
    assert sql.one("select procjobs.retry(%s)", job)
    assert state(sql, notification)[0::3] == ("pending", False)


async def test_a_job_given_back_at_a_shutdown_waits_again(db: Database, sql: Any, notification: UUID) -> None:
    job = queue_job(sql, notification)
    sql("update public.procrastinate_jobs set status = 'doing' where id = %s", job)
    await db.row("begin_delivery", p_notification=notification, p_worker="w", p_domain="d.example")
    assert state(sql, notification)[0] == "processing"
    sql("update public.procrastinate_jobs set status = 'todo' where id = %s", job)
    assert state(sql, notification)[0::3] == ("pending", False)


async def test_a_job_given_up_after_crashes_says_so(db: Database, sql: Any, notification: UUID) -> None:
    job = queue_job(sql, notification)
    await db.row("begin_delivery", p_notification=notification, p_worker="w", p_domain="d.example")
    sql(
        """
        insert into procjobs.job_attempts (job_id, attempt, lease, outcome, error_message, finished_at)
        values (%s, 1, 3, 'crashed', 'worker w stopped sending heartbeats', now())
        """,
        job,
    )
    sql("update public.procrastinate_jobs set status = 'failed' where id = %s", job)
    assert state(sql, notification) == ("failed", 0, "worker w stopped sending heartbeats", True)
    assert [row[1] for row in log(sql, notification)] == ["unknown"]


async def test_other_tasks_jobs_do_not_reach_the_trigger(sql: Any, notification: UUID) -> None:
    sql("create function public.refuse() returns trigger language plpgsql as $$ begin raise 'touched'; end $$")
    sql(
        "create trigger refuse before update on procjobs.notification_jobs "
        "for each statement execute function public.refuse()"
    )
    sql("insert into procjobs.tasks (name, registered_at, registered_by) values ('other', now(), 'test')")
    other = sql.one("select procjobs.defer('other')")
    sql("update public.procrastinate_jobs set status = 'failed' where id = %s", other)
    sql("delete from public.procrastinate_jobs where id = %s", other)
    with pytest.raises(psycopg.errors.RaiseException, match="touched"):
        sql("delete from public.procrastinate_jobs where id = %s", queue_job(sql, notification))


# Through a worker


def app_of(dsn: str, server: MailServer, smtp_timeout: str = "0.5") -> App:
    settings = Settings.load(
        environ={
            "DATABASE_URL": dsn,
            "PROCJOBS_SMTP_HOST": "127.0.0.1",
            "PROCJOBS_SMTP_PORT": str(server.port),
            "PROCJOBS_SMTP_TIMEOUT": smtp_timeout,
            "PROCJOBS_MAIL_FROM": "Team <team@harbourlane.example>",
        }
    )
    return default_app(settings)


@pytest.fixture
def app(dsn: str, server: MailServer) -> App:
    return app_of(dsn, server)


async def work(app: App) -> None:
    """A worker that stops when nothing is left to do."""
    async with app.open_async():
        await app.run_worker_async(wait=False, install_signal_handlers=False)


def due(sql: Any) -> None:
    """What waits for its next try waits no longer."""
    sql("update public.procrastinate_jobs set scheduled_at = now() - interval '1 second' where status = 'todo'")


async def test_from_sql_to_the_mailbox(app: App, sql: Any, facts: demo.DemoFacts, server: MailServer) -> None:
    found = [enqueue(sql, facts) for _ in range(3)]
    await work(app)
    assert [state(sql, notification)[0] for notification in found] == ["sent"] * 3
    assert {message["X-Notification-Id"] for message in server.messages} == {
        str(notification) for notification in found
    }
    assert server.connections <= 5
    assert (
        sql("select status::text, task_name from procjobs.job_history")
        == [("succeeded", "procjobs.send_notification")] * 3
    )


async def test_urgent_mail_leaves_first(app: App, sql: Any, facts: demo.DemoFacts, server: MailServer) -> None:
    for urgency in ("low", "normal", "urgent"):
        sql(
            "select procjobs.enqueue_notification_job(%s, urgency => %s, content => %s::jsonb)",
            facts.recipient_id,
            urgency,
            f'{{"subject": "{urgency}", "body": "x"}}',
        )
    async with app.open_async():
        await app.run_worker_async(wait=False, install_signal_handlers=False, concurrency=1)
    assert [message["Subject"] for message in server.messages] == ["urgent", "normal", "low"]
    assert [message["Importance"] for message in server.messages] == ["high", None, None]


async def test_three_tries_and_no_more_each_on_record(
    app: App, sql: Any, notification: UUID, server: MailServer
) -> None:
    server.replies["RCPT"] = ["450 busy"] * 9
    waits = []
    for _ in range(4):
        await work(app)
        waits += sql(
            "select round(extract(epoch from scheduled_at - procjobs.clock()) / 60)::int "
            "from public.procrastinate_jobs where status = 'todo'"
        )
        due(sql)
    assert waits == [(1,), (2,)]
    assert [row[:3] for row in log(sql, notification)] == [
        (1, "deferred", 450),
        (2, "deferred", 450),
        (3, "deferred", 450),
    ]
    assert state(sql, notification) == ("failed", 2, "450 busy", True)
    assert sql.one("select count(*) from public.procrastinate_jobs where status = 'failed'") == 1


async def test_a_refused_one_is_a_dead_letter_after_one_try(
    app: App, sql: Any, notification: UUID, server: MailServer
) -> None:
    server.replies["RCPT"] = ["554 no thanks"]
    await work(app)
    assert state(sql, notification) == ("failed", 0, "554 no thanks", True)
    assert sql("select status::text, attempts from public.procrastinate_jobs") == [("failed", 1)]

    assert sql.one("select procjobs.retry(%s)", queue_job(sql, notification))
    await work(app)
    assert state(sql, notification)[:2] == ("sent", 1)


async def test_a_scheduled_one_is_not_sent_before_its_time(
    app: App, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    later = enqueue(sql, facts, delay=30)
    await work(app)
    assert (state(sql, later)[0], server.raw) == ("pending", [])
    due(sql)
    await work(app)
    assert state(sql, later)[0] == "sent"


async def test_cancelling_while_it_is_sent_ends_it_and_says_what_is_known(
    dsn: str, sql: Any, notification: UUID, server: MailServer
) -> None:
    server.replies["DATA"] = [HANG]
    working = asyncio.create_task(work(app_of(dsn, server, smtp_timeout="60")))
    await server.hanging.wait()
    assert sql.one("select procjobs.cancel(%s, 'changed my mind')", queue_job(sql, notification)) == "requested"
    await working
    assert state(sql, notification) == ("cancelled", 0, "changed my mind", True)
    assert [row[1] for row in log(sql, notification)] == ["unknown"]


async def test_no_mail_server_is_said_in_the_log_and_tried_again(dsn: str, sql: Any, notification: UUID) -> None:
    await work(default_app(Settings.load(environ={"DATABASE_URL": dsn})))
    assert state(sql, notification)[0] == "pending"
    assert "PROCJOBS_SMTP_HOST" in log(sql, notification)[0][4]


async def test_the_migration_and_the_worker_describe_the_task_alike(app: App, sql: Any) -> None:
    described = "select to_jsonb(t) - 'registered_at' - 'registered_by' from procjobs.tasks t where name = %s"
    before = sql.one(described, "procjobs.send_notification")
    await app.register_tasks()
    assert sql.one(described, "procjobs.send_notification") == before


@pytest.mark.parametrize(
    ("status", "codes", "verdict"),
    [
        ("sent", (200, 250, None), True),
        ("refused", (400, 404, 550), True),
        ("refused", (None,), None),
        ("deferred", (450, 409, 425), True),
        ("deferred", (401, 403, 530, 535), False),  # a login that is wrong or has expired helps nobody
        ("deferred", (408, 421, 451, 452, 454, 500, 503, None), False),
        ("deferred", (200, 302), False),  # an error under an OK: Slack's internal_error, invalid_auth
        ("deferred", (429,), None),
        ("unknown", (None, 250), False),
    ],
)
def test_what_a_reply_says_of_the_server(sql: Any, status: str, codes: tuple[Any, ...], verdict: bool | None) -> None:
    for code in codes:
        assert sql.one("select procjobs.delivery_verdict(%s, %s)", status, code) is verdict, code


@pytest.mark.parametrize(("provider_code", "failed"), [("no_connection", 1), (None, 0)])
def test_a_server_that_refuses_us_whatever_the_message_fails(
    sql: Any, notification: UUID, provider_code: str | None, failed: int
) -> None:
    delivery = sql.one("select delivery_id from procjobs.begin_delivery_v2(%s, 'w', 'd.example')", notification)
    sql(
        "select procjobs.finish_delivery(%s, 'deferred', 5, 'p', 450, 'not now', 'not now', null, null, %s)",
        delivery, provider_code,
    )  # fmt: skip
    assert sql.one("select failed from procjobs.breakers where name = 'smtp'") == failed


def test_a_type_that_is_named_like_a_method_is_not_for_that_ones_breaker(sql: Any, facts: demo.DemoFacts) -> None:
    sql(
        "select procjobs.enqueue_notification_job(%s, %s, null, 'sms', 'normal', 'email', %s::jsonb, 0)",
        facts.recipient_id, facts.group_id, '{"subject": "Hello", "body": "You"}',
    )  # fmt: skip
    sql(
        "select procjobs.enqueue_letters(jsonb_build_array(jsonb_build_object('template', 'notification', 'content', "
        "%s::jsonb, 'recipient', %s::uuid, 'notification_type', 'webhook')))",
        '{"subject": "Hello", "body": "You"}', facts.recipient_id,
    )  # fmt: skip
    for method in ("sms", "webhook"):  # as their breakers do when they are open
        sql("select procjobs.set_limit(%s, queue => 'notifications', max_running => 0)", method)
        sql("update procjobs.limits set tag = name where name = %s", method)
    worker = sql.one(
        "select procjobs.register_worker('w', 'h', 1, '0', null, '{procjobs.send_notification}', 5, '10 s', '30 s')"
    )
    assert sql("select task_name from procjobs.claim_jobs(%s, null, 5)", worker) == [
        ("procjobs.send_notification",), ("procjobs.send_notification",),
    ]  # fmt: skip


@pytest.mark.parametrize(("chosen", "most"), [(None, 12), (3, 3)])
async def test_a_worker_has_as_many_connections_as_jobs_unless_it_is_told(
    dsn: str, sql: Any, facts: demo.DemoFacts, eventually: Callable[..., Any], chosen: int | None, most: int
) -> None:
    sql("select procjobs.set_limit('notifications', queue => 'notifications', max_running => 100)")
    async with MailServer(replies={"DATA": [HOLD] * 12}) as server:
        settings = Settings(dsn=dsn, smtp_host="127.0.0.1", smtp_port=server.port, smtp_connections=chosen)
        app = default_app(settings)
        async with app.open_async():
            for _ in range(12):
                await app.notify_async(facts.recipient_id, {"subject": "Dinner", "body": "At seven."})
            worker = asyncio.create_task(
                app.run_worker_async(concurrency=12, wait=False, install_signal_handlers=False)
            )
            begun = "select count(*) from procjobs.notification_jobs where status = 'processing'"
            await eventually(lambda: sql.one(begun) == 12)
            await eventually(lambda: server.held == most)
            assert server.most_at_once == most
            server.released.set()
            await worker
        assert len(server.raw) == 12 and server.most_at_once == most
