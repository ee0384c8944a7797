"""Letters by any template, to recipients, persons and bare addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Mailer, Sent
from procjobs.packs.notifications import NothingToSend, deliver
from tests.mail_server import MailServer

LETTER = '{"subject": "Welcome", "body": "Good to have you."}'


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
async def facts(db: Database) -> demo.DemoFacts:
    return await demo.seed(db)


async def send(db: Database, server: MailServer, notification: Any) -> Any:
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")
    try:
        return await deliver(db, mailer, Brand(), notification, worker="w1")
    finally:
        await mailer.close()


async def test_a_letter_goes_to_a_bare_address(db: Database, sql: Any, facts: Any, server: MailServer) -> None:
    found = sql.one(
        "select procjobs.enqueue_letter('notification', %s, address => 'new@example.org', address_name => 'Nina')",
        LETTER,
    )
    assert isinstance(await send(db, server, found), Sent)
    assert server.messages[0]["To"] == "Nina <new@example.org>"
    assert b"Hello Nina," in server.raw[0]
    assert sql(
        "select status, address, recipient_id, template from procjobs.notification_jobs where id = %s", found
    ) == [("sent", "new@example.org", None, "notification")]


async def test_a_letter_goes_to_a_person_where_they_are_now(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    found = sql.one("select procjobs.enqueue_letter('notification', %s, person => %s)", LETTER, facts.user_id)
    sql("update procjobs_demo.people set email = 'moved@example.org' where id = %s", facts.user_id)
    assert isinstance(await send(db, server, found), Sent)
    assert "moved@example.org" in server.messages[0]["To"]

    gone = sql.one("select procjobs.enqueue_letter('notification', %s, person => %s)", LETTER, facts.user_id)
    sql("update procjobs_demo.people set email = null where id = %s", facts.user_id)
    assert await send(db, server, gone) == NothingToSend(
        sent=False, reason="the recipient is gone or has no e-mail address any more"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("'nonsense', '{}', address => 'a@b.example'", "template 'nonsense' is not known"),
        ("null, '{}', address => 'a@b.example'", "template null is not known"),
        ("'notification', '{}', address => 'a@b.example'", "content.subject is missing or empty"),
        ("'notification', %(letter)s", "one of recipient, person and address says who gets it"),
        (
            "'notification', %(letter)s, address => 'a@b.example', person => gen_random_uuid()",
            "one of recipient, person and address says who gets it",
        ),
        ("'notification', %(letter)s, address => E'a@b.example\\nBcc: x@y.example'", "is not an e-mail address"),
        ("'notification', %(letter)s, address => 'a@b.example', urgency => 'now'", "urgency 'now' is none of"),
        ("'notification', %(letter)s, person => gen_random_uuid()", "unknown person"),
        ("'notification', %(letter)s, recipient => gen_random_uuid()", "unknown recipient"),
    ],
)
def test_what_cannot_be_sent_is_refused(sql: Any, facts: Any, arguments: str, problem: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        sql.connection.execute(f"select procjobs.enqueue_letter({arguments})", {"letter": LETTER})
    assert problem in f"{refused.value.diag.message_primary} {refused.value.diag.message_detail}"
    assert refused.value.diag.message_hint
    assert (
        sql.one(
            "select count(*) from procjobs.notification_jobs where template <> 'notification' or address is not null"
        )
        == 0
    )


def test_a_letter_and_its_job_come_together_or_not_at_all(sql: Any, facts: Any) -> None:
    before = sql.one("select count(*) from public.procrastinate_jobs")
    with psycopg.connect(sql.connection.info.dsn) as producer:
        producer.execute("select procjobs.enqueue_letter('notification', %s, address => 'a@b.example')", (LETTER,))
        producer.rollback()
    assert sql.one("select count(*) from public.procrastinate_jobs") == before
