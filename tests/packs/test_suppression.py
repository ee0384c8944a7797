"""Addresses that do not exist are not written to again; everything that a mail server can say ends as it should."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Ambiguous, Deferred, Mailer, Refused, Sent
from procjobs.packs.notifications import NothingToSend, deliver
from tests.mail_server import DROP, HANG, MailServer

CONTENT = '{"subject": "Test", "body": "Hello!"}'


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
async def post(server: MailServer) -> AsyncIterator[Mailer]:
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>", timeout=0.4)
    yield mailer
    await mailer.close()


@pytest.fixture
async def facts(db: Database, sql: Any) -> demo.DemoFacts:
    """The demo without the address that it suppresses."""
    found = await demo.seed(db)
    sql("delete from procjobs.suppressed_addresses")
    return found


def write(sql: Any, address: str = "Nina@Example.org") -> UUID:
    found: UUID = sql.one(
        "select procjobs.enqueue_letter('notification', %s::jsonb, address => %s, urgency => 'urgent')",
        CONTENT,
        address,
    )
    return found


def state(sql: Any, notification: UUID) -> tuple[Any, ...]:
    (found,) = sql("select status, last_error from procjobs.notification_jobs where id = %s", notification)
    return tuple(found)


def tries(sql: Any, notification: UUID) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = sql(
        "select status, smtp_code, message_id from procjobs.notification_delivery_logs "
        "where job_id = %s order by attempt",
        notification,
    )
    return found


# Scenario 37: what a server can say, and what becomes of it


@pytest.mark.parametrize(
    ("stage", "reply", "outcome", "status", "log", "suppressed"),
    [
        ("CONNECT", "421 4.3.2 too busy", Deferred, "pending", ("deferred", 421), False),
        ("MAIL", "421 4.7.0 closing", Deferred, "pending", ("deferred", 421), False),
        ("RCPT", "421 4.7.0 closing", Deferred, "pending", ("deferred", 421), False),
        ("DATA", "421 4.7.0 closing", Deferred, "pending", ("deferred", 421), False),
        ("RCPT", "450 4.2.1 greylisted", Deferred, "pending", ("deferred", 450), False),
        ("RCPT", "452 4.2.2 over quota", Deferred, "pending", ("deferred", 452), False),
        ("DATA", "452 4.3.1 no space", Deferred, "pending", ("deferred", 452), False),
        ("RCPT", "550 5.1.1 no such user", Refused, "failed", ("refused", 550), True),
        ("RCPT", "550 no such user", Refused, "failed", ("refused", 550), True),
        ("RCPT", "553 5.1.3 bad syntax", Refused, "failed", ("refused", 553), True),
        ("RCPT", "550 5.7.1 blocked by policy", Refused, "failed", ("refused", 550), False),
        ("RCPT", "552 5.2.2 mailbox full", Refused, "failed", ("refused", 552), False),
        ("RCPT", "554 5.1.2 no such host", Refused, "failed", ("refused", 554), True),
        ("RCPT", "554 no", Refused, "failed", ("refused", 554), False),
        ("MAIL", "550 5.1.1 not your sender", Refused, "failed", ("refused", 550), False),
        ("DATA", "550 5.1.1 no such user", Refused, "failed", ("refused", 550), False),
        ("DATA", "552 5.3.4 too big", Refused, "failed", ("refused", 552), False),
        ("DATA", "554 5.7.1 spam", Refused, "failed", ("refused", 554), False),
        ("DATA", HANG, Ambiguous, "pending", ("unknown", None), False),
        ("DATA", DROP, Ambiguous, "pending", ("unknown", None), False),
        ("RCPT", HANG, Deferred, "pending", ("deferred", None), False),
        ("MAIL", DROP, Deferred, "pending", ("deferred", None), False),
    ],
)
async def test_scenario_37(
    db: Database, sql: Any, facts: Any, server: MailServer, post: Mailer,
    stage: str, reply: str, outcome: type, status: str, log: tuple[str, int | None], suppressed: bool,
) -> None:  # fmt: skip
    notification = write(sql)
    server.replies[stage] = [reply]
    assert isinstance(await deliver(db, post, Brand(), notification, worker="w1"), outcome)
    assert state(sql, notification)[0] == status
    assert [row[:2] for row in tries(sql, notification)] == [log]
    assert sql("select address from procjobs.suppressed_addresses") == [("nina@example.org",)] * suppressed

    if status == "pending":  # is tried again, under the same Message-ID, and arrives
        assert isinstance(await deliver(db, post, Brand(), notification, worker="w2"), Sent)
        assert state(sql, notification)[0] == "sent"
        first, second = (row[2] for row in tries(sql, notification))
        assert first == second == server.messages[-1]["Message-ID"] == f"<{notification}@harbourlane.example>"


async def test_two_recipients_of_one_occasion_are_two_messages_with_an_outcome_each(
    db: Database, sql: Any, facts: Any, server: MailServer, post: Mailer
) -> None:
    good, bad = write(sql, "good@example.org"), write(sql, "bad@example.org")
    server.replies["RCPT"] = ["250 OK", "550 5.1.1 no such user"]
    assert isinstance(await deliver(db, post, Brand(), good, worker="w1"), Sent)
    assert isinstance(await deliver(db, post, Brand(), bad, worker="w1"), Refused)
    assert (state(sql, good)[0], state(sql, bad)[0]) == ("sent", "failed")
    assert server.recipients == [["good@example.org"]]
    assert server.connections == 1
    assert sql("select address, notification_id from procjobs.suppressions") == [("bad@example.org", bad)]


# The list


async def test_what_bounced_is_not_written_to_again_until_it_is_taken_off(
    db: Database, sql: Any, facts: Any, server: MailServer, post: Mailer
) -> None:
    server.replies["RCPT"] = ["550 5.1.1 no such user"]
    first = write(sql)
    await deliver(db, post, Brand(), first, worker="w1")
    assert sql("select reason, code, reply, notification_id, template from procjobs.suppressions") == [
        ("bounced", 550, "5.1.1 no such user", first, "notification")
    ]

    again, connections = write(sql, "NINA@example.org"), server.connections
    found = await deliver(db, post, Brand(), again, worker="w1")
    assert isinstance(found, NothingToSend) and not found.sent
    assert found.reason.startswith("the address is suppressed since 20")
    assert found.reason.endswith(": bounced 550 5.1.1 no such user")
    assert state(sql, again) == ("failed", found.reason)
    assert (tries(sql, again), server.connections) == ([], connections)

    assert sql.one("select procjobs.unsuppress_address(' Nina@example.org')")
    assert not sql.one("select procjobs.unsuppress_address('nina@example.org')")
    assert isinstance(await deliver(db, post, Brand(), write(sql), worker="w1"), Sent)


def test_addresses_are_added_and_listed_by_hand(sql: Any) -> None:
    assert sql.one("select procjobs.suppress_address('Ann@Example.org', 'asked us to stop')")
    assert not sql.one("select procjobs.suppress_address('ann@example.org')")
    assert sql.one("select procjobs.suppress_address('bob@example.net')")
    assert sql("select address, reason, code from procjobs.list_suppressed_addresses('EXAMPLE.org')") == [
        ("ann@example.org", "asked us to stop", None)
    ]
    assert len(sql("select * from procjobs.list_suppressed_addresses(max_rows => 1)")) == 1
    for wrong in ("nobody", "a b@c.example", "a@b.example\nx", None):
        with pytest.raises(psycopg.Error) as refused:
            sql("select procjobs.suppress_address(%s)", wrong)
        assert refused.value.sqlstate == "PJ009" and refused.value.diag.message_hint


@pytest.mark.parametrize(
    ("reply", "hard"),
    [
        ("5.1.6 moved", True), ("5.1.10 null MX", True), ("5.2.1 disabled", True), ("5.1.1", True),
        ("5.1.100 no", False), ("5.2.2 full", False), ("5.7.26 DMARC", False),
        ("relay not permitted", False), ("Relaying denied", False), ("<a@b.example>: Relay access denied", False),
        ("sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", False), ("user unknown (#5.1.1)", True),
        ("authentication required", False), ("Access denied - see 5.7.1.", False), ("Blocked by 85.1.1.2", False),
        ("sender verify failed", False), ("<a@b.example>: Recipient address rejected: User unknown", True),
        ("Requested action not taken: mailbox unavailable", True), ("Unrouteable address", True),
        ("5.3.0 what", False), ("mailbox 5.1.1 in words", True), ("", True), (None, True), ("4.1.1 odd", False),
    ],
)  # fmt: skip
def test_which_replies_mean_that_there_is_no_such_mailbox(sql: Any, reply: str | None, hard: bool) -> None:
    assert sql.one("select procjobs.is_hard_bounce('rcpt', 550, %s)", reply) == hard
    assert not sql.one("select procjobs.is_hard_bounce('rcpt', 450, %s)", reply)
    assert not sql.one("select procjobs.is_hard_bounce('data', 550, %s)", reply)
    assert not sql.one("select procjobs.is_hard_bounce(null, 550, %s)", reply)


def test_a_worker_of_the_release_before_finishes_its_tries(sql: Any) -> None:
    """It names no stage, and nothing is suppressed."""
    assert sql.one("select procjobs.finish_delivery(1, 'refused', 1, 'x:25', 550, '5.1.1 no', '550 5.1.1 no')") is False


async def test_a_letter_that_cannot_be_written_is_refused_and_says_why(
    db: Database, sql: Any, facts: Any, server: MailServer, post: Mailer
) -> None:
    content = '{"tips": [{"detail": "a tip without a title"}]}'
    notification = sql.one("select procjobs.enqueue_letter('tips', %s::jsonb, address => 'a@b.example')", content)
    found = await deliver(db, post, Brand(), notification, worker="w1")
    assert isinstance(found, Refused) and "the letter tips cannot be written" in found.reply
    assert state(sql, notification)[0] == "failed" and server.connections == 0


def test_a_letter_without_what_it_needs_is_refused_at_once(sql: Any, facts: Any) -> None:
    with pytest.raises(psycopg.Error) as refused:
        sql("select procjobs.enqueue_letter('invoice', '{\"total\": 5, \"lines\": []}', address => 'a@b.example')")
    detail = str(refused.value.diag.message_detail)
    assert "content.number is missing" in detail and "content.total is number, not a string" in detail


@pytest.mark.parametrize("character", ["\r\n", "\n", "\r", "\u2028", "\x0b", "\x85"])
async def test_line_breaks_in_what_the_application_says_of_somebody_make_no_header(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer, post: Mailer, character: str
) -> None:
    bad = f"x{character}Bcc: y@z.example"
    letter = "select procjobs.enqueue_notification_job(%s, %s, content => %s::jsonb)"
    sql("update procjobs_demo.recipients set name = %s where id = %s", bad, facts.recipient_id)
    sql("update procjobs_demo.groups set name = %s", bad)
    sql("update procjobs_demo.organizations set name = %s", bad)
    one = sql.one(letter, facts.recipient_id, facts.group_id, CONTENT)
    assert isinstance(await deliver(db, post, Brand(), one, worker="w1"), Sent)
    assert server.messages[0]["Bcc"] is None and server.recipients == [["ingrid@family.example"]]
    assert server.messages[0]["To"].addresses[0].display_name == "x Bcc: y@z.example"

    two = sql.one(letter, facts.recipient_id, facts.group_id, CONTENT)
    sql("update procjobs_demo.recipients set email = %s where id = %s", f"a@b.example{character}z", facts.recipient_id)
    refused = await deliver(db, post, Brand(), two, worker="w1")
    assert isinstance(refused, Refused) and refused.code is None and len(server.raw) == 1
