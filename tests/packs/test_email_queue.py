"""Notices of the inbox, mailed in batches: one mail a person, fifty a minute, none twice and none stuck."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Mailer, Sent
from procjobs.packs.notifications import deliver
from tests.mail_server import MailServer

ROWS = "select status, attempts, error from procjobs.notification_email_queue order by created_at, id"


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
def at(sql: Any) -> Any:
    def set_clock(moment: str) -> None:
        sql("select set_config('procjobs.now', %s, false)", moment)

    set_clock("2030-05-14 12:00:10Z")
    return set_clock


@pytest.fixture
def person(sql: Any, at: Any) -> Any:
    def make(name: str = "Ann") -> UUID:
        found: UUID = sql.one(
            "insert into procjobs_demo.people (name, email, timezone) "
            "values (%s, %s || '@example.org', 'Asia/Kolkata') returning id", name, name,
        )  # fmt: skip
        return found

    return make


def notice(sql: Any, person: UUID, title: str = "Look") -> UUID:
    found: UUID = sql.one(
        "insert into procjobs_demo.inbox (person_id, kind, title, created_at) "
        "values (%s, 'comment', %s, procjobs.clock()) returning id", person, title,
    )  # fmt: skip
    return found


def queue(sql: Any, person: UUID, *notices: UUID, at: str | None = None) -> UUID:
    found: UUID = sql.one("select procjobs.queue_notification_email(%s, %s, %s)", person, list(notices), at)
    return found


def process(sql: Any) -> int:
    return int(sql.one("select procjobs.process_email_queue()"))


async def send(db: Database, server: MailServer, notification: Any) -> Any:
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")
    try:
        return await deliver(db, mailer, Brand(), notification, worker="w1")
    finally:
        await mailer.close()


async def test_what_is_due_for_a_person_is_one_mail(db: Database, sql: Any, person: Any, server: MailServer) -> None:
    ann, bob = person("Ann"), person("Bob")
    first, second, third = (notice(sql, ann, title) for title in ("First", "Second", "Third"))
    queue(sql, ann, first, second)
    queue(sql, ann, second, third)
    queue(sql, ann, third, at="2030-05-14 13:00Z")
    queue(sql, bob, notice(sql, bob))
    assert process(sql) == 2
    assert process(sql) == 0
    assert [status for status, *_ in sql(ROWS)].count("processing") == 3
    sql("update procjobs_demo.inbox set read_at = now() where id = %s", first)
    (mail,) = sql("select id from procjobs.notification_jobs where person_id = %s", ann)
    assert isinstance(await send(db, server, mail[0]), Sent)
    (message,) = server.messages
    assert message["Subject"] == "2 new notices"
    body = message.get_body(("plain",))
    assert body is not None
    text = body.get_content()
    assert text.count("* Second") == text.count("* Third") == 1 and "First" not in text
    assert "17:30 (Asia/Kolkata)" in text
    mine = "select status, attempts from procjobs.notification_email_queue where person_id = %s order by scheduled_for"
    assert sql(mine, ann) == [("sent", 1), ("sent", 1), ("pending", 0)]


def test_what_was_read_meanwhile_is_skipped(sql: Any, person: Any) -> None:
    ann = person()
    one = notice(sql, ann)
    queue(sql, ann, one)
    sql("update procjobs_demo.inbox set read_at = now() where id = %s", one)
    assert process(sql) == 0
    assert sql(ROWS) == [("skipped", 0, "all of it had been read")]


async def test_what_was_read_before_the_mail_left_is_skipped(
    db: Database, sql: Any, person: Any, server: MailServer
) -> None:
    ann = person()
    one = notice(sql, ann)
    queue(sql, ann, one)
    assert process(sql) == 1
    sql("delete from procjobs_demo.inbox where id = %s", one)
    await send(db, server, sql.one("select id from procjobs.notification_jobs"))
    assert server.messages == []
    assert sql(ROWS) == [("skipped", 0, "nothing of it is left to send: it was read or removed meanwhile")]


def test_at_most_fifty_a_minute(sql: Any, person: Any, at: Any) -> None:
    sql("insert into procjobs_demo.people (name, email) select n, n || '@example.org' from generate_series(1, 120) n")
    sql(
        "insert into procjobs_demo.inbox (person_id, kind, title) select id, 'comment', 'Look' from "
        "procjobs_demo.people"
    )
    sql("select procjobs.queue_notification_email(person_id, array[id]) from procjobs_demo.inbox")
    assert [process(sql), process(sql)] == [50, 0]
    at("2030-05-14 12:01:00Z")
    assert sql.one("select procjobs.process_email_queue(20)") == 20
    assert process(sql) == 30
    at("2030-05-14 12:02:00Z")
    assert process(sql) == 20


def test_one_at_a_time_and_nothing_stays_behind_a_crash(sql: Any, dsn: str, person: Any) -> None:
    ann = person()
    queue(sql, ann, notice(sql, ann))
    with psycopg.connect(dsn) as other:
        other.execute("select set_config('procjobs.now', '2030-05-14 12:00:10Z', false)")
        assert other.execute("select procjobs.process_email_queue()").fetchone() == (1,)
        assert process(sql) == 0  # the other one is at it
        other.rollback()
    assert sql(ROWS) == [("pending", 0, None)]
    assert process(sql) == 1


def test_a_row_whose_mail_was_lost_is_taken_again(sql: Any, person: Any, at: Any) -> None:
    ann = person()
    queue(sql, ann, notice(sql, ann))
    assert process(sql) == 1
    sql("delete from procjobs.notification_jobs")
    at("2030-05-14 12:01:10Z")
    assert process(sql) == 1
    assert (
        sql.one(
            "select count(*) from procjobs.notification_email_queue q join procjobs.notification_jobs n on n.id "
            "= q.notification_id"
        )
        == 1
    )


async def test_the_row_has_the_fate_of_its_mail(db: Database, sql: Any, person: Any, server: MailServer) -> None:
    ann = person()
    queue(sql, ann, notice(sql, ann))
    process(sql)
    job = sql.one("select job_id from procjobs.notification_jobs")
    sql("select procjobs.cancel(%s, 'not today')", job)
    assert sql(ROWS) == [("skipped", 0, "not today")]
    sql("select procjobs.retry(%s)", job)
    assert sql(ROWS)[0][0] == "processing"
    sql("update procjobs_demo.people set email = null where id = %s", ann)
    await send(db, server, sql.one("select id from procjobs.notification_jobs"))
    assert sql(ROWS) == [("failed", 0, "the recipient is gone or has no e-mail address any more")]


def test_one_who_cannot_be_reached_holds_up_nobody(sql: Any, person: Any) -> None:
    ann, bob, eve = person("Ann"), person("Bob"), person("Eve")
    for one in (ann, bob, eve):
        queue(sql, one, notice(sql, one))
    sql("update procjobs_demo.people set email = '' where id = %s", ann)
    sql("delete from procjobs_demo.people where id = %s", bob)
    assert process(sql) == 1
    assert sorted(sql(ROWS), key=str) == sorted(
        [
            ("failed", 0, "the person has no e-mail address"),
            ("failed", 0, "the person is not there any more"),
            ("processing", 0, None),
        ],
        key=str,
    )


def test_what_cannot_be_queued_is_refused(sql: Any, person: Any) -> None:
    ann, bob = person("Ann"), person("Bob")
    hers = notice(sql, ann)
    for who, notices, code in ((ann, [], "PJ023"), (bob, [hers], "PJ023"), (uuid4(), [hers], "PJ020")):
        with pytest.raises(psycopg.Error) as refused:
            queue(sql, who, *notices)
        assert refused.value.sqlstate == code and refused.value.diag.message_hint


def test_its_schedule_is_switched_by_its_group(sql: Any) -> None:
    sql("select procjobs.declare_digests()")
    sql("select procjobs.apply_environment(null, '{\"email_queue\": false}')")
    states = dict(sql("select name, state from procjobs.schedule_list"))
    assert states == {"create_digest_jobs": "active", "process_email_queue": "off"}
