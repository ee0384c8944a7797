"""Letters by any template, to recipients, persons and bare addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Mail, Mailer, Sent, compose, parse_sender
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


ADDRESSES = [
    "a+b@example.com", "o'brien@example.com", "NINA@EXAMPLE.COM", "x@y", "a..b@docomo.example", "ñina@example.com",
    "nina@münchen.example", "nina@straße.example", "nina@xn--bcher-kva.example", "a@\u0915\u094d\u200d\u0937.example",
    "a!#$%&*+/=?^`{|}~@e.example", "a" * 64 + "@e.example", "a@" + "b" * 63 + ".example",
]  # fmt: skip
NO_ADDRESSES = [
    "", "nobody", "@e.example", "a@", "a@b@c", "a b@c", '"a b"@c', "a@[127.0.0.1]", "a@e..example", "a@.example",
    "a@e.example.", "a@-e.example", "a@e-.example", "a@b!c.example", "a@b/c",
    "a" * 65 + "@e.example", "ü" * 33 + "@e.example",
    "a@" + "b" * 64 + ".example", "a@" + "b." * 126 + "example", "a@exam\u00a0ple.com", "a\u202eb@e.example",
    "a\u200bb@e.example", "a@e.example\u2028", "a@e.example\nBcc: c@d.example",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_sql_takes_for_an_address_can_be_written_to(sql: Any, address: str) -> None:
    assert sql.one("select procjobs.mail_address_problem(%s)", address) is None
    letter = Mail(to=address, name="Nina", subject="Hi", text="Hi", html="<p>Hi</p>", message_id="<1@team.example>")
    assert compose(letter, parse_sender("team@team.example"))["To"].addresses[0].username == address.split("@")[0]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_is_refused_before_anything_is_queued(sql: Any, facts: Any, address: str) -> None:
    for query in (
        'select procjobs.enqueue_letter(\'notification\', \'{"subject": "Hi", "body": "Hi"}\', address => %s)',
        "select procjobs.create_invite(procjobs.demo_id('studio'), %s, 'member', procjobs.demo_id('maya'))",
        "select procjobs.suppress_address(%s)",
    ):
        if "suppress" in query and address != address.strip():
            continue  # white space around it is not of it
        with pytest.raises(psycopg.Error, match="is not an e-mail address"):
            sql(query, address)


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
        *(
            (
                f"'report_ready', '{{\"report\": \"October\", \"url\": {url}}}', address => 'a@b.example'",
                f"content.url is {what}",
            )
            for url, what in (
                ('"javascript:alert(1)"', "not an http or https address"),
                ('"/reports/10"', "not an http or https address"),
                ('"https://a.example/ b"', "not an http or https address"),
                ('""', "not an http or https address"),
                ("7", "number, not a string"),
            )
        ),
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
