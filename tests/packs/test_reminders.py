"""Reminders of payments and events: who is reminded when, once each whoever looks, and only of what is still true."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from procjobs.db import Database
from procjobs.errors import InvalidReminderStep, translate
from procjobs.letters import Brand, render, sample
from procjobs.mail import Mailer, Sent
from procjobs.packs.notifications import NothingToSend, deliver
from tests.mail_server import MailServer

PAID = datetime(2031, 3, 3, 8, tzinfo=UTC)  # a Monday
START = datetime(2031, 6, 10, 15, tzinfo=UTC)


class Host:
    """The demo's tables with people in them, and no project and no event but those of the test."""

    def __init__(self, sql: Any) -> None:
        self.sql = sql
        sql("select procjobs.seed_demo()")
        sql("delete from procjobs_demo.projects")
        sql("delete from procjobs_demo.events")
        sql("delete from procjobs.notification_jobs")

    def project(self, name: str = "Northern Lights", contact: str | None = "maya", **columns: Any) -> UUID:
        values = {"advance_paid_at": PAID, "balance_due": 4200, "payment_url": "https://pay.example/x"} | columns
        found: UUID = self.sql.one(
            f"insert into procjobs_demo.projects (name, contact_id, {', '.join(values)}) "
            f"values (%s, procjobs.demo_id(%s), {', '.join(['%s'] * len(values))}) returning id",
            name, contact, *values.values(),
        )  # fmt: skip
        return found

    def event(self, starts_at: datetime = START, timezone: str = "Europe/Stockholm", **people: str | None) -> UUID:
        found: UUID = self.sql.one(
            "insert into procjobs_demo.events (organization_id, title, starts_at, timezone) "
            "values (procjobs.demo_id('studio'), 'Screening', %s, %s) returning id", starts_at, timezone,
        )  # fmt: skip
        for person, before in people.items():
            self.sql(
                "insert into procjobs_demo.event_attendees values (%s, procjobs.demo_id(%s), %s)", found, person, before
            )
        return found

    def at(self, now: datetime) -> None:
        self.sql("select set_config('procjobs.now', %s, false)", now.isoformat())

    def remind(self, kind: str, now: datetime) -> int:
        self.at(now)
        found: int = self.sql.one(f"select procjobs.create_{kind}_reminders()")
        return found

    def ledger(self, what: str = "step") -> list[Any]:
        rows = self.sql(f"select {what} from procjobs.reminders order by created_at, id")
        return [row[0] if len(row) == 1 else row for row in rows]


@pytest.fixture
def host(sql: Any) -> Host:
    return Host(sql)


def days(count: float) -> datetime:
    """So many days after the advance was paid, two hours later: at ten."""
    return PAID + timedelta(days=count, hours=2)


async def send(db: Database, server: MailServer, host: Host) -> list[Any]:
    """A try to send each mail that waits, by the true time: the test's is that of its own session."""
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")
    waiting = host.sql("select id from procjobs.notification_jobs where status = 'pending' order by created_at, id")
    try:
        return [await deliver(db, mailer, Brand(), found, worker="w") for (found,) in waiting]
    finally:
        await mailer.close()


# Payments


def test_a_balance_is_reminded_of_after_3_7_and_14_days_and_then_every_7(host: Host) -> None:
    host.project()
    host.project("Paid", balance_paid_at=PAID)
    host.project("Nothing due", balance_due=0)
    host.project("No advance", advance_paid_at=None)
    sent = {day: host.ledger()[-1] for day in range(37) if host.remind("payment", days(day))}
    assert sent == {3: "first", 7: "second", 14: "third", 21: "weekly", 28: "weekly", 35: "weekly"}
    assert host.ledger("amount, mail_status")[0] == (4200, "pending")


def test_who_was_not_looked_at_for_days_gets_the_latest_step_and_no_heap(host: Host) -> None:
    host.project()
    assert [host.remind("payment", days(day)) for day in (16, 16.1, 17)] == [1, 0, 0]
    assert host.ledger() == ["third"]


def test_a_project_has_one_reminder_a_local_day_of_its_contact(host: Host, sql: Any) -> None:
    sql("select procjobs.drop_reminder_step('payment', name) from procjobs.list_reminder_steps('payment')")
    sql("select procjobs.set_reminder_step('payment', 'daily', after => '1 day', every => '1 day')")
    host.project("Tokyo", "aiko", advance_paid_at=datetime(2031, 3, 1, tzinfo=UTC))
    evening = datetime(2031, 3, 5, 14, 59, tzinfo=UTC)  # 23:59 there
    assert [host.remind("payment", evening - timedelta(hours=h)) for h in (16, 0)] == [1, 0]
    assert host.remind("payment", evening + timedelta(hours=10)) == 1
    assert [str(day) for day in host.ledger("local_day")] == ["2031-03-05", "2031-03-06"]
    sql("update procjobs_demo.people set timezone = 'Nowhere/Land'")
    sql("update procjobs_demo.projects set organization_id = procjobs.demo_id('press')")
    host.remind("payment", evening + timedelta(days=2))
    assert host.ledger("timezone")[-1] == "Europe/Oslo"


@pytest.mark.parametrize("kind", ["payment", "event"])
def test_of_two_that_look_at_once_one_sends(host: Host, dsn: str, kind: str) -> None:
    for number in range(10):
        host.project(f"Project {number}")
        host.event(maya="1 day", tomas="1 day")
    now = days(3) if kind == "payment" else START - timedelta(hours=1)
    call = f"select procjobs.create_{kind}_reminders()"

    def other() -> int:
        with psycopg.connect(dsn) as connection:
            connection.execute("select set_config('procjobs.now', %s, false)", (now.isoformat(),))
            row = connection.execute(call.encode()).fetchone()
        return int(row[0]) if row else -1

    host.at(now)
    with ThreadPoolExecutor(2) as pool:
        host.sql("begin")
        mine = host.sql.one(call)
        theirs = [pool.submit(other) for _ in range(2)]
        blocked = (
            "select count(*) from pg_stat_activity where wait_event = 'transactionid' and datname = current_database()"
        )
        with psycopg.connect(dsn, autocommit=True) as look:
            while look.execute(blocked).fetchone() != (2,):
                assert not any(found.done() for found in theirs)
        host.sql("commit")
        assert (mine, [found.result() for found in theirs]) == (10 if kind == "payment" else 20, [0, 0])
    assert host.sql.one("select count(*) from procjobs.notification_jobs") == mine


def test_why_nobody_was_reminded_is_said_once_a_day_until_somebody_can_be(host: Host, sql: Any) -> None:
    host.project("Nobody", None)
    host.project("No mail", "priya")
    sql("update procjobs_demo.people set email = ' ' where id = procjobs.demo_id('priya')")
    assert [host.remind("payment", days(day)) for day in (3, 3.1)] == [0, 0]
    assert sorted(host.ledger("outcome, reason")) == [
        ("unreachable", "the contact has no e-mail address"),
        ("unreachable", "the project has no contact"),
    ]
    sql("update procjobs_demo.people set email = 'priya@harbourlane.example' where id = procjobs.demo_id('priya')")
    assert [host.remind("payment", days(day)) for day in (3.2, 4)] == [1, 0]
    listed = sql("select about, person_name, outcome, mail_status from procjobs.list_reminders('payment')")
    assert ("No mail", "Priya Raman", "created", "pending") in listed
    assert len(listed) == 4  # nobody on two days, no mail and then one on the first


def test_a_slip_in_the_kind_is_no_empty_list(host: Host, sql: Any) -> None:
    with pytest.raises(psycopg.Error, match="no reminders of the kind 'payments'") as refused:
        sql("select * from procjobs.list_reminders('payments')")
    assert (refused.value.sqlstate, refused.value.diag.message_hint) == ("PJ009", "One of payment, event.")


@pytest.mark.parametrize("balance", ["NaN", None])
def test_what_is_no_amount_is_asked_of_nobody(host: Host, sql: Any, balance: str | None) -> None:
    sql("alter table procjobs_demo.projects alter balance_due drop not null")
    host.project("Unknown", balance_due=balance)
    assert host.remind("payment", days(3)) == 0 and host.ledger() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("contact_id = procjobs.demo_id('tomas')", "the project has another contact now"),
        ("contact_id = null", "the project has another contact now"),
        ("advance_paid_at = null", "the advance was taken back, or paid at another time"),
        ("balance_due = null", "the balance was paid meanwhile"),
        ("balance_due = 0", "the balance was paid meanwhile"),
    ],
)
async def test_whom_it_is_not_for_any_more_gets_no_reminder(
    host: Host, db: Database, sql: Any, change: str, reason: str
) -> None:
    sql("alter table procjobs_demo.projects alter balance_due drop not null")
    host.project()
    host.remind("payment", days(3))
    sql(f"update procjobs_demo.projects set {change}")
    async with MailServer() as server:
        assert await send(db, server, host) == [NothingToSend(sent=False, reason=reason)]
        assert server.messages == []
    assert host.ledger("mail_status, mail_error") == [("cancelled", reason)]


async def test_what_was_paid_meanwhile_is_not_sent(host: Host, db: Database, sql: Any) -> None:
    host.project("Unpaid")
    host.project("Paid later", "tomas")
    host.remind("payment", days(3))
    sql("update procjobs_demo.projects set balance_paid_at = now() where name = 'Paid later'")
    async with MailServer() as server:
        outcomes = await send(db, server, host)
    assert sorted(map(type, outcomes), key=repr) == sorted([Sent, NothingToSend], key=repr)
    assert NothingToSend(sent=False, reason="the balance was paid meanwhile") in outcomes
    (message,) = server.messages
    assert (message["To"], message["Subject"]) == (
        "Maya Lindgren <maya@harbourlane.example>",
        "Reminder: 4,200.00 EUR left to pay for Unpaid",
    )
    words = message.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert "paid 3 days ago" in words and "https://pay.example/x" in words
    assert {status for (status, _) in host.ledger("mail_status, id")} == {"sent", "cancelled"}
    assert "the balance was paid meanwhile" in host.ledger("mail_error")


# Events


def test_attendees_are_reminded_as_they_chose_once_and_before_the_start(host: Host) -> None:
    host.event(maya="1 day", tomas="2 hours", aiko=None)
    minute = timedelta(minutes=1)
    hours = {
        h: host.remind("event", START - timedelta(hours=h) + m) for h, m in ((24, -minute), (23, minute), (3, minute))
    }
    assert hours == {24: 0, 23: 1, 3: 0}
    assert [host.remind("event", START - timedelta(hours=h)) for h in (2, 1, 0, -1)] == [1, 0, 0, 0]
    late = host.event(liam="1 day")
    host.sql("update procjobs_demo.events set is_cancelled = true where id = %s", late)
    assert host.remind("event", START - timedelta(hours=2)) == 0
    host.sql("update procjobs_demo.events set is_cancelled = false")
    assert host.remind("event", START) == 0  # it has begun
    assert host.ledger("step, outcome") == [("chosen", "created")] * 2


def test_a_further_step_comes_nearer_to_the_start_and_who_joins_late_gets_one(host: Host, sql: Any) -> None:
    sql(
        "select procjobs.set_reminder_step('event', 'soon', before => '1 hour', urgency => 'urgent', heading => 'Soon')"
    )
    event = host.event(maya="1 day", aiko=None)
    assert host.remind("event", START - timedelta(hours=20)) == 1
    assert host.remind("event", START - timedelta(minutes=60)) == 1
    sql("insert into procjobs_demo.event_attendees values (%s, procjobs.demo_id('tomas'), '1 day')", event)
    assert [host.remind("event", START - timedelta(minutes=m)) for m in (30, 20)] == [1, 0]
    assert host.ledger() == ["chosen", "soon", "soon"]
    assert sql("select urgency, content ->> 'heading' from procjobs.notification_jobs order by created_at") == [
        ("normal", None), ("urgent", "Soon"), ("urgent", "Soon"),
    ]  # fmt: skip


async def test_a_moved_event_is_reminded_of_anew_and_what_is_not_true_any_more_is_not_sent(
    host: Host, db: Database, sql: Any
) -> None:
    soon = datetime.now(UTC) + timedelta(hours=20)  # workers have the true clock
    moved, cancelled, left = (host.event(soon, maya="1 day") for _ in range(3))
    host.event(soon, maya="1 day")
    assert host.remind("event", soon - timedelta(hours=19)) == 4
    sql("update procjobs_demo.events set starts_at = starts_at + interval '1 hour' where id = %s", moved)
    sql("update procjobs_demo.events set is_cancelled = true where id = %s", cancelled)
    sql("delete from procjobs_demo.event_attendees where event_id = %s", left)
    async with MailServer() as server:
        outcomes = await send(db, server, host)
        assert sorted(found.reason for found in outcomes if isinstance(found, NothingToSend)) == [
            "the event was cancelled",
            "the event was moved",
            "the person does not attend any more, or wants no reminder",
        ]
        assert host.remind("event", soon - timedelta(hours=18)) == 1
        assert [type(found) for found in await send(db, server, host)] == [Sent]
    assert len(server.messages) == 2
    assert all("Reminder: Screening, " in str(message["Subject"]) for message in server.messages)
    assert sql.one("select count(*) from procjobs.event_reminders where event_id = %s", moved) == 2


@pytest.mark.parametrize(
    ("before", "due"),
    [("1 day", "2031-03-29 19:00+00"), ("24 hours", "2031-03-29 18:00+00"), ("1 day 2 hours", "2031-03-29 17:00+00")],
)
def test_days_before_count_by_the_clocks_of_the_place(host: Host, before: str, due: str) -> None:
    host.event(
        datetime(2031, 3, 30, 18, tzinfo=UTC), maya=before
    )  # 20:00 in Stockholm, on the day that clocks go forward
    at = datetime.fromisoformat(due)
    assert [host.remind("event", at - timedelta(minutes=1)), host.remind("event", at)] == [0, 1]


# Steps, schedules, letters


def test_steps_are_changed_switched_off_and_dropped(host: Host, sql: Any) -> None:
    host.project()
    sql("select procjobs.set_reminder_step('payment', 'first', after => '1 day', words => 'Please.')")
    sql("select procjobs.set_reminder_step('payment', 'first', heading => 'A word', enabled => false)")
    assert host.remind("payment", days(2)) == 0
    sql("select procjobs.set_reminder_step('payment', 'first', enabled => true)")
    assert host.remind("payment", days(2)) == 1
    assert (
        sql.one("select concat(content ->> 'heading', content ->> 'words') from procjobs.notification_jobs")
        == "A wordPlease."
    )
    assert sql.one("select procjobs.drop_reminder_step('payment', 'weekly')") is True
    assert sql.one("select procjobs.drop_reminder_step('payment', 'weekly')") is False
    assert [name for name, in sql("select name from procjobs.list_reminder_steps()")] == [
        "first", "second", "third", "chosen",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ("'letter', 'X'", ["kind 'letter' is neither payment nor event",
            "name 'X' is not a lowercase word of at most 63 letters"]),
        ("'payment', 'a'", ["after is missing: how long after the advance was paid"]),
        ("'payment', 'a', after => '1 day', before => '1 day'", ["before is for events; of payments it is after"]),
        ("'payment', 'a', after => '-1 day', every => '1 hour'", ["after is -1 days, not 0 to 10 years",
            "every is 01:00:00, not a day or more, in days"]),
        ("'payment', 'a', after => '1 day', every => '1 month'", ["every is 1 mon, not a day or more, in days"]),
        ("'event', 'a', after => '1 day', every => '1 day'", ["after is for payments; of events it is before",
            "every is for payments; an event can have several steps"]),
        ("'event', 'a', before => '0'", ["before is 00:00:00, not more than 0 and up to 10 years"]),
        ("'event', 'a', urgency => 'now', heading => E'a\\nb'", ["urgency 'now' is none of urgent, normal, low",
            "heading is not one line of at most 100 characters"]),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_is_refused_with_every_problem(sql: Any, arguments: str, problems: list[str]) -> None:
    with pytest.raises(psycopg.Error) as refused:
        sql(f"select procjobs.set_reminder_step({arguments})")
    error = translate(refused.value)
    assert isinstance(error, InvalidReminderStep)
    assert (error.detail or "").splitlines() == problems


def test_the_schedules_come_with_it_in_their_groups(sql: Any) -> None:
    sql("select procjobs.declare_reminders()")
    assert sql(
        'select name, cron, timezone, "group" from procjobs.schedules where name like %s order by 1', "create%reminders"
    ) == [
        ("create_event_reminders", "* * * * *", None, "event_reminders"),
        ("create_payment_reminders", "0 10 * * *", None, "payment_reminders"),
    ]
    assert sql.one("select procjobs.declare_reminders()") == 0
    sql("select procjobs.apply_environment('Asia/Tokyo', '{\"payment_reminders\": false}')")  # ENABLE_PAYMENT_REMINDERS
    assert sql("select state from procjobs.schedule_list where name like %s order by name", "create%reminders") == [
        ("active",),
        ("off",),
    ]
    slot = "select to_char(slot at time zone 'UTC', 'HH24:MI') from procjobs.preview_schedule(%s, 1)"
    assert sql.one(slot, "create_payment_reminders") == "01:00"


async def test_an_application_without_projects_and_events_reminds_nobody_but_may_write_such_letters(
    db: Database, host: Host, sql: Any
) -> None:
    sql("drop view procjobs.host_projects, procjobs.host_events")
    assert sql("select procjobs.create_payment_reminders(), procjobs.create_event_reminders()") == [(0, 0)]
    assert sql("select * from procjobs.list_reminders()") == []
    for template in ("payment_reminder", "event_reminder"):
        sql("select procjobs.enqueue_letter(%s, %s, address => 'a@b.example')", template, Jsonb(sample(template)))
    async with MailServer() as server:
        assert [type(found) for found in await send(db, server, host)] == [Sent, Sent]


def test_one_project_that_says_odd_things_does_not_stop_the_others(host: Host, sql: Any) -> None:
    sql("alter table procjobs_demo.projects alter currency drop not null, alter name drop not null")
    host.project(None, currency=None)  # type: ignore[arg-type]
    host.project("Ever", advance_paid_at="-infinity")
    host.project("Long" * 500)
    host.project("Endless", payment_url="https://pay.example/" + "x" * 300_000)
    assert host.remind("payment", days(3)) == 3


@pytest.mark.parametrize("kind", ["payment", "event"])
def test_however_many_are_due_their_letters_are_requested_in_one_call(host: Host, sql: Any, kind: str) -> None:
    for number in range(3):
        host.project(f"Project {number}")
        host.event(maya="1 day", tomas="1 day")
    host.at(days(3) if kind == "payment" else START - timedelta(hours=1))
    sql("set track_functions = 'all'")
    sql("begin")
    made = sql.one(f"select procjobs.create_{kind}_reminders()")
    called = "select funcname::text, calls from pg_stat_xact_user_functions where funcname = any (%s)"
    one_by_one = ["enqueue_letter", "request_notification", "check_letter"]
    assert sql(called, ["request_letters", *one_by_one]) == [("request_letters", 1)]
    sql("commit")
    mails = "select n.template, n.notification_type, n.person_id from procjobs.notification_jobs n"
    ledger = f"select '{kind}_reminder', '{kind}_reminder', r.person_id from procjobs.reminders r"
    assert sorted(sql(f"{mails} join procjobs.reminders r on r.notification_id = n.id")) == sorted(sql(ledger))
    assert made == len(sql(ledger)) == (3 if kind == "payment" else 6)


FRAME = {
    "name": "Maya", "greeting": "Hello Maya,", "timezone": "Europe/Stockholm", "sender_name": "Harbour Lane",
    "logo_url": None, "reason": "Because.", "when": "now", "brand": Brand(), "address": "maya@harbourlane.example",
}  # fmt: skip


def test_the_letter_says_how_to_pay_where_there_is_no_page_for_it() -> None:
    content = {"project": "Tide", "amount": "1800", "currency": "JPY", "paid_on": "2031-03-03", "days": 1}
    written = render("payment_reminder", **FRAME, **content)
    for words in (written.text, written.html):
        assert "1,800\u00a0JPY" in words.replace("&nbsp;", "\u00a0") and "paid 1 day ago" in words
        assert "Pay it the way you paid the advance" in words and "Pay the balance" not in words


def test_the_letter_tells_the_time_of_the_place_where_it_is_another() -> None:
    content = {"title": "Party", "starts_at": "2031-06-10T15:00:00+00:00", "location": "The Boathouse"}
    here = render("event_reminder", **FRAME, **content, place_timezone="Europe/Berlin")
    there = render("event_reminder", **FRAME, **content, place_timezone="America/New_York")
    assert here.subject == "Reminder: Party, Tue 10 Jun 2031, 17:00 (Europe/Stockholm)"
    assert "At the place" not in here.text + here.html
    for words in (there.text, there.html):
        assert "Tue 10 Jun 2031, 11:00 (America/New York)" in words and "Tue 10 Jun 2031, 17:00" in words


def test_what_is_over_is_forgotten_but_for_what_says_where_a_project_stands(host: Host, sql: Any) -> None:
    host.project()
    host.event(datetime(2031, 3, 30, 18, tzinfo=UTC), maya="1 day")
    assert [host.remind("payment", days(day)) for day in (3, 7)] == [1, 1]
    host.remind("event", datetime(2031, 3, 30, tzinfo=UTC))
    host.at(days(300))
    assert sql.one("select procjobs.forget_reminders()") == 0
    host.at(days(500))
    assert sql.one("select procjobs.forget_reminders()") == 2
    assert host.ledger() == ["second"]
