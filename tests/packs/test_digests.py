"""Digests: schedules that can be made and changed, what is due once, what is told, and why there was none."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError
from datetime import time
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from procjobs import demo
from procjobs.app import App
from procjobs.db import Database
from procjobs.errors import (
    DigestNotFound,
    DuplicateDigest,
    InvalidDigest,
    InvalidNotification,
    UnknownGroup,
    UnknownRecipient,
)
from procjobs.letters import Brand
from procjobs.mail import Mailer, Sent
from procjobs.packs.digests import Digests
from procjobs.packs.notifications import NothingToSend, deliver
from tests.mail_server import MailServer

NOON = "2030-05-14 12:00Z"  # a Tuesday


@pytest.fixture
async def facts(db: Database) -> demo.DemoFacts:
    found = await demo.seed(db)
    async with db.connection() as connection:  # those of the demo would be in the way
        await connection.execute("delete from procjobs.digest_schedules")
        await connection.execute("delete from procjobs.notification_email_queue")
    return found


@pytest.fixture
def at(sql: Any) -> Any:
    """`at("2030-05-14 12:00Z")` sets the clock of `sql`."""

    def set_clock(moment: Any) -> None:
        sql("select set_config('procjobs.now', %s, false)", str(moment))

    return set_clock


@pytest.fixture
async def digests(db: Database) -> Digests:
    async def database() -> Database:
        return db

    return Digests(database)


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


async def send(db: Database, server: MailServer, notification: Any) -> Any:
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")
    try:
        return await deliver(db, mailer, Brand(), notification, worker="w1")
    finally:
        await mailer.close()


def make(sql: Any, facts: Any, frequency: str = "daily", **options: Any) -> UUID:
    """A digest of the demo's family for Ingrid, at nine in UTC unless said otherwise."""
    options = {"recipient": facts.recipient_id, "group": facts.group_id, "timezone": "UTC", **options}
    named = ", ".join(f'"{name}" => %s' for name in options)
    found: UUID = sql.one(
        f"select procjobs.create_digest_schedule(frequency => %s, {named})", frequency, *options.values()
    )
    return found


def share(sql: Any, facts: Any, when: str, title: str = "News", kind: str = "text", group: Any = None) -> UUID:
    found: UUID = sql.one(
        "insert into procjobs_demo.updates (group_id, author_id, content_type, title, created_at) "
        "values (%s, %s, %s, %s, %s) returning id",
        group or facts.group_id, facts.user_id, kind, title, when,
    )  # fmt: skip
    return found


def runs(sql: Any) -> list[tuple[Any, ...]]:
    return sql("select outcome, reason, updates, left_out from procjobs.digest_runs order by id")  # type: ignore[no-any-return]


# -- schedules -----------------------------------------------------------------------------------------------------


async def test_python_makes_changes_lists_and_removes_one(digests: Digests, facts: demo.DemoFacts) -> None:
    made = await digests.create(
        facts.recipient_id, "weekly", group=facts.group_id, delivery_time=time(7, 30), day_of_week=7,
        include_content_types=["photos"],
    )  # fmt: skip
    assert (made.recipient_name, made.group_name, made.zone) == ("Ingrid", "The Lindgrens", "Europe/Stockholm")
    assert (made.delivery_time, made.delivery_day, made.max_updates_per_digest) == (time(7, 30), 7, 10)
    with pytest.raises(FrozenInstanceError):
        made.frequency = "daily"  # type: ignore[misc]

    off = await digests.update(made.id, is_active=False)
    assert (off.is_active, off.delivery_time, off.include_content_types) == (False, time(7, 30), ["photos"])
    everything = await digests.update(made.id, include_content_types=None, delivery_time="08:00:30")
    assert (everything.include_content_types, everything.delivery_time) == (None, time(8, 0, 30))

    other = await digests.create(facts.recipient_id, "daily")
    assert [one.id for one in await digests.list(recipient=facts.recipient_id)] == [other.id, made.id]
    assert [one.id for one in await digests.list(group=facts.group_id)] == [made.id]
    assert [one.id for one in await digests.list(frequency="daily")] == [other.id]
    assert [one.id for one in await digests.list(active=False)] == [made.id]
    assert [one.id for one in await digests.list(limit=1, offset=1)] == [made.id]
    assert await digests.delete(made.id) and not await digests.delete(made.id)
    with pytest.raises(DigestNotFound, match="no digest schedule"):
        await digests.update(made.id, is_active=True)


async def test_the_day_may_be_named_as_one_number(digests: Digests, sql: Any, facts: demo.DemoFacts) -> None:
    weekly = await digests.create(facts.recipient_id, "weekly", delivery_time="09:00:00", delivery_day=1)
    assert (weekly.day_of_week, weekly.day_of_month, weekly.delivery_day) == (1, None, 1)
    monthly = sql.one("select procjobs.create_digest_schedule(%s, 'monthly', delivery_day => 31)", facts.recipient_id)
    assert sql("select day_of_week, day_of_month from procjobs.digest_schedules where id = %s", monthly) == [(None, 31)]
    for frequency, day, problem in (("daily", 1, "means nothing"), ("weekly", 8, "must be 1"), ("monthly", 0, "1")):
        with pytest.raises(InvalidDigest, match=problem):
            await digests.create(facts.recipient_id, frequency, group=facts.group_id, delivery_day=day)


async def test_the_app_has_them(dsn: str, facts: demo.DemoFacts) -> None:
    app = App(dsn)
    async with app.open_async():
        made = await app.digests.create(facts.recipient_id, "monthly", day_of_month=31)
        assert (await app.digests.list(owner=facts.user_id)) == [made]


async def test_a_person_sees_and_changes_only_their_own(digests: Digests, facts: demo.DemoFacts) -> None:
    made = await digests.create(facts.recipient_id, "daily", owner=facts.user_id)
    stranger = facts.admin_id
    assert [one.id for one in await digests.list(owner=facts.user_id)] == [made.id]
    assert await digests.list(owner=stranger) == []
    assert not await digests.delete(made.id, owner=stranger)
    with pytest.raises(DigestNotFound):
        await digests.update(made.id, owner=stranger, is_active=False)
    with pytest.raises(UnknownRecipient):
        await digests.create(facts.recipient_id, "weekly", owner=stranger)
    assert (await digests.get(made.id)).is_active


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"frequency": "hourly"}, "frequency"),
        ({"delivery_time": "24:00"}, "delivery_time"),
        ({"delivery_time": "9am"}, "delivery_time"),
        ({"timezone": "Europe/Atlantis"}, "time zone"),
        ({"timezone": "+02"}, "time zone"),
        ({"day_of_week": 0}, "day_of_week"),
        ({"day_of_week": 8}, "day_of_week"),
        ({"day_of_month": 32}, "day_of_month"),
        ({"day_of_month": 5}, "day_of_month means nothing for a "),
        ({"frequency": "monthly", "day_of_week": 5}, "day_of_week means nothing for a monthly digest"),
        ({"max_updates_per_digest": 0}, "max_updates_per_digest"),
        ({"max_updates_per_digest": 101}, "max_updates_per_digest"),
        ({"include_content_types": []}, "include_content_types"),
        ({"include_content_types": [""]}, "include_content_types"),
        ({"delivery_method": "pigeon"}, "delivery_method"),
    ],
)
async def test_what_cannot_be_is_refused_when_made_and_when_changed(
    digests: Digests, facts: demo.DemoFacts, options: dict[str, Any], problem: str
) -> None:
    given = {"frequency": "daily", **options}
    with pytest.raises(InvalidDigest) as refused:
        await digests.create(facts.recipient_id, given.pop("frequency"), **given)
    assert problem in str(refused.value) and refused.value.detail and refused.value.hint
    made = await digests.create(facts.recipient_id, "weekly")
    with pytest.raises(InvalidDigest, match=problem):
        await digests.update(made.id, **options)
    assert await digests.get(made.id) == made


async def test_other_refusals(digests: Digests, sql: Any, facts: demo.DemoFacts) -> None:
    made = await digests.create(facts.recipient_id, "daily", group=facts.group_id)
    with pytest.raises(DuplicateDigest) as twice:
        await digests.create(facts.recipient_id, "daily", group=facts.group_id)
    assert str(made.id) in (twice.value.detail or "")
    weekly = await digests.create(facts.recipient_id, "weekly", group=facts.group_id)
    with pytest.raises(DuplicateDigest):
        await digests.update(weekly.id, frequency="daily")
    await digests.create(facts.recipient_id, "daily")
    with pytest.raises(DuplicateDigest):
        await digests.create(facts.recipient_id, "daily")
    with pytest.raises(UnknownRecipient):
        await digests.create(uuid4(), "daily")
    with pytest.raises(UnknownGroup):
        await digests.create(facts.recipient_id, "daily", group=uuid4())
    with pytest.raises(InvalidDigest, match="recipient_id"):
        await digests.update(made.id, recipient_id=str(facts.user_id))
    with pytest.raises(InvalidDigest, match="daily"):
        await digests.update(made.id, delivery_day=3)
    assert (await digests.update(weekly.id, delivery_day=3)).day_of_week == 3
    no_mail = sql.one("select id from procjobs_demo.recipients where name = 'Ben'")
    sql("update procjobs_demo.recipients set email = null where id = %s", no_mail)
    with pytest.raises(InvalidNotification, match="no e-mail address"):
        await digests.create(no_mail, "daily")


def test_only_a_new_time_moves_the_next_one(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    digest = make(sql, facts)
    due = "select next_digest_scheduled::text from procjobs.digest_schedules"
    sql("set timezone = 'UTC'")
    assert sql.one(due) == "2030-05-15 09:00:00+00"
    assert sql.one("select procjobs.update_digest_schedule(%s, '{\"max_updates_per_digest\": 3}')", digest)
    assert sql.one(due) == "2030-05-15 09:00:00+00"
    assert not sql.one("select procjobs.update_digest_schedule(%s, '{\"max_updates_per_digest\": 3}')", digest)
    sql('select procjobs.update_digest_schedule(%s, \'{"delivery_time": "13:00"}\')', digest)
    assert sql.one(due) == "2030-05-14 13:00:00+00"
    sql("select procjobs.update_digest_schedule(%s, '{\"is_active\": false}')", digest)
    at("2030-05-20 12:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 0
    sql("select procjobs.update_digest_schedule(%s, '{\"is_active\": true}')", digest)
    assert sql.one(due) == "2030-05-20 13:00:00+00"


# -- what is due ---------------------------------------------------------------------------------------------------


def test_a_digest_tells_once_what_is_new_and_unread(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    make(sql, facts, max_updates_per_digest=2, include_content_types=["text", "photos"])
    old = share(sql, facts, "2030-05-13 08:00Z", "Too old")
    read = share(sql, facts, "2030-05-14 13:00Z", "Read")
    sql("insert into procjobs_demo.update_reads values (%s, %s)", read, facts.recipient_id)
    share(sql, facts, "2030-05-14 14:00Z", "Of no interest", "milestones")
    share(sql, facts, "2030-05-14 15:00Z", "One")
    two, three = (share(sql, facts, f"2030-05-14 {hour}:00Z", title) for hour, title in ((16, "Two"), (17, "Three")))
    later = share(sql, facts, "2030-05-15 09:30Z", "To come")
    at("2030-05-15 08:59Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 0
    assert runs(sql) == []
    at("2030-05-15 09:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 1
    assert sql.one("select procjobs.create_digest_jobs()") == 0
    assert runs(sql) == [("created", None, 3, 1)]
    ((content, kind, template, urgency, job),) = sql(
        "select content, notification_type, template, urgency, job_id from procjobs.notification_jobs "
        "where template = 'digest'"
    )
    assert content["update_ids"] == [str(three), str(two)] and content["more"] == 1
    assert (kind, template, urgency) == ("digest", "digest", "low")
    assert sql("select task_name, priority, pj_tags from procrastinate_jobs where id = %s", job) == [
        ("procjobs.send_notification", -10, ["notification", "digest", "email"])
    ]
    at("2030-05-16 09:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 1
    assert sql.one(
        "select content -> 'update_ids' from procjobs.notification_jobs where template = 'digest' order by "
        "created_at desc limit 1"
    ) == [str(later)]
    assert old != read


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        ("select 1", "empty", "nothing was shared since 2030-05-13 12:00:00 UTC"),
        (("insert into procjobs_demo.updates (group_id, author_id, content_type, title, created_at) "
          "values (%(group)s, %(author)s, 'milestones', 'x', '2030-05-14 15:00Z')"),
         "empty", "1 shared since 2030-05-13 12:00:00 UTC, none of them text"),
        (("with u as (insert into procjobs_demo.updates (group_id, author_id, title, created_at) "
          "values (%(group)s, %(author)s, 'x', '2030-05-14 15:00Z') returning id) "
          "insert into procjobs_demo.update_reads select id, %(recipient)s from u"),
         "empty", "all of 1 shared since 2030-05-13 12:00:00 UTC had been read"),
        ("update procjobs_demo.group_recipients set muted_until = '2030-06-01Z' where recipient_id = %(recipient)s",
         "muted", "muted until 2030-06-01 00:00:00 UTC"),
        ("update procjobs_demo.group_recipients set muted_until = 'infinity' where recipient_id = %(recipient)s",
         "muted", "muted"),
        ("update procjobs_demo.recipients set email = ' ' where id = %(recipient)s",
         "unreachable", "the recipient has no e-mail address"),
        ("delete from procjobs_demo.group_recipients where recipient_id = %(recipient)s",
         "gone", "the recipient does not receive what the group shares any more"),
        ("delete from procjobs_demo.recipients where id = %(recipient)s",
         "gone", "the recipient is not there any more"),
    ],
)  # fmt: skip
def test_one_that_finds_nothing_says_why(sql: Any, facts: Any, at: Any, change: str, outcome: str, reason: str) -> None:
    at(NOON)
    make(sql, facts, include_content_types=["text"])
    sql.connection.execute(change, {"group": facts.group_id, "author": facts.user_id, "recipient": facts.recipient_id})
    at("2030-05-15 09:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 0
    assert runs(sql) == [(outcome, reason, 0, 0)]
    assert sql.one("select next_digest_scheduled = '2030-05-16 09:00Z' from procjobs.digest_schedules")
    assert sql.one("select last_digest_at from procjobs.digest_schedules") is None
    if outcome != "gone":
        assert sql.one("select answer from procjobs.why_no_digest(%s)", facts.recipient_id) == reason


def test_an_update_that_is_committed_late_is_told_by_the_next_one(sql: Any, dsn: str, facts: Any, at: Any) -> None:
    at(NOON)
    make(sql, facts)
    with psycopg.connect(dsn) as other:
        # It has the time at which its transaction began, and is seen when that ends: the digest is made in between.
        late = other.execute(
            "insert into procjobs_demo.updates (group_id, author_id, content_type, title, created_at) "
            "select %s, author_id, 'text', 'Late', '2030-05-15 08:59:58Z' from procjobs_demo.updates limit 1 "
            "returning id",
            [facts.group_id],
        ).fetchone()
        share(sql, facts, "2030-05-15 08:59:59Z")  # as late, and committed in time: told now, and not again
        at("2030-05-15 09:00Z")
        assert sql.one("select procjobs.create_digest_jobs()") == 1
    at("2030-05-16 09:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 1
    at("2030-05-17 09:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 0
    assert late is not None
    told = "select content -> 'update_ids' from procjobs.notification_jobs where template = 'digest'"
    assert [ids for (ids,) in sql(told) if str(late[0]) in ids] == [[str(late[0])]]


def test_a_mute_loses_nothing(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    make(sql, facts)
    share(sql, facts, "2030-05-15 08:00Z")
    sql(
        "update procjobs_demo.group_recipients set muted_until = '2030-05-16 08:00Z' where recipient_id = %s",
        facts.recipient_id,
    )
    for day in (15, 16):
        at(f"2030-05-{day} 09:00Z")
        sql("select procjobs.create_digest_jobs()")
    assert [outcome for outcome, *_ in runs(sql)] == ["muted", "created"]


def test_of_all_groups_the_muted_ones_are_left_out(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    launch = sql.one("select id from procjobs_demo.groups where name = 'Launch team'")
    make(sql, facts, recipient=facts.user_id, group=None)
    quiet = share(sql, facts, "2030-05-14 20:00Z", "Of the family")
    heard = share(sql, facts, "2030-05-14 21:00Z", "Of the team", group=launch)
    sql("update procjobs_demo.group_recipients set muted_until = 'infinity' where recipient_id = %s and group_id = %s",
        facts.user_id, facts.group_id)  # fmt: skip
    at("2030-05-15 09:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 1
    told = (
        "select content -> 'update_ids' from procjobs.notification_jobs where template = 'digest' order by created_at"
    )
    assert sql(told) == [([str(heard)],)]
    more = share(sql, facts, "2030-05-15 20:00Z", "Of the family, again")
    said = share(sql, facts, "2030-05-15 21:00Z", "Of the team, again", group=launch)
    at("2030-05-16 09:00Z")
    sql("select procjobs.create_digest_jobs()")
    sql("update procjobs_demo.group_recipients set muted_until = null where recipient_id = %s", facts.user_id)
    last = share(sql, facts, "2030-05-16 20:00Z", "Of the family, at last")
    for day in 17, 18:
        at(f"2030-05-{day} 09:00Z")
        sql("select procjobs.create_digest_jobs()")
    assert sql(told)[1:] == [([str(said)],), ([str(last), str(more), str(quiet)],)], "made up for, once"


def test_after_days_of_silence_there_is_one(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    make(sql, facts)
    for day in range(15, 20):
        share(sql, facts, f"2030-05-{day} 08:00Z", f"Of the {day}th")
    at("2030-05-20 10:17Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 1
    assert runs(sql) == [("created", None, 5, 0)]
    assert sql.one("select next_digest_scheduled = '2030-05-21 09:00Z' from procjobs.digest_schedules")


def test_two_at_once_make_one_each(sql: Any, dsn: str, facts: Any, at: Any) -> None:
    at(NOON)
    for group in (facts.group_id, None):
        for frequency in ("daily", "weekly"):
            make(sql, facts, frequency, group=group, day_of_week=3 if frequency == "weekly" else None)
    share(sql, facts, "2030-05-15 08:00Z")
    made, together = [], threading.Barrier(4)

    def create() -> None:
        with psycopg.connect(dsn) as other:
            other.execute("select set_config('procjobs.now', '2030-05-15 09:00Z', false)")
            together.wait(30)
            ((count,),) = other.execute("select procjobs.create_digest_jobs()").fetchall()
            together.wait(30)  # nobody commits before all have looked
            made.append(count)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    at("2030-05-15 09:00Z")
    assert sum(made) + sql.one("select procjobs.create_digest_jobs()") == 4
    assert sql.one("select count(*), count(distinct schedule_id) from procjobs.digest_runs") == 4
    assert sql.one("select count(*) from procjobs.notification_jobs where template = 'digest'") == 4


def test_what_the_application_says_wrong_of_one_does_not_stop_the_others(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    make(sql, facts, timezone=None)
    make(sql, facts, recipient=facts.user_id)
    sql("update procjobs_demo.recipients set timezone = 'Mars/Olympus' where id = %s", facts.recipient_id)
    at("2030-05-16 12:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 0
    assert sql.one("select count(*) from procjobs.digest_runs") == 2
    assert (
        sql.one("select count(*) from procjobs.digest_schedules where next_digest_scheduled = '2030-05-17 09:00Z'") == 2
    )


# -- the mail ------------------------------------------------------------------------------------------------------


async def test_the_words_are_those_of_the_moment_it_is_sent(
    db: Database, sql: Any, facts: Any, at: Any, server: MailServer
) -> None:
    at(NOON)
    make(sql, facts, timezone=None)
    titles = ("Kept", "Read since", "Removed since", "To be corrected")
    updates = [share(sql, facts, f"2030-05-15 0{n}:30Z", title, "photos") for n, title in enumerate(titles)]
    at("2030-05-15 09:00Z")
    assert sql.one("select procjobs.create_digest_jobs()") == 1
    notification = sql.one("select notification_id from procjobs.digest_runs")
    sql("insert into procjobs_demo.update_reads values (%s, %s)", updates[1], facts.recipient_id)
    sql("delete from procjobs_demo.updates where id = %s", updates[2])
    sql("update procjobs_demo.updates set title = 'Corrected' where id = %s", updates[3])
    assert isinstance(await send(db, server, notification), Sent)
    (message,) = server.messages
    assert message["Subject"] == "2 new updates from The Lindgrens: your daily digest"
    body = message.get_body(("plain",))
    assert body is not None
    text = body.get_content()
    assert text.index("* Corrected") < text.index("* Kept")
    assert "Maya" in text and "photos:" in text and "(Europe/Stockholm)" in text
    assert "05:30 (Europe/Stockholm)" in text
    assert not any(gone in text for gone in ("Read since", "Removed since", "To be corrected"))


async def test_one_of_which_nothing_is_left_is_not_sent(
    db: Database, sql: Any, facts: Any, at: Any, server: MailServer
) -> None:
    at(NOON)
    make(sql, facts)
    update = share(sql, facts, "2030-05-15 08:00Z")
    at("2030-05-15 09:00Z")
    sql("select procjobs.create_digest_jobs()")
    sql("insert into procjobs_demo.update_reads values (%s, %s)", update, facts.recipient_id)
    outcome = await send(db, server, sql.one("select notification_id from procjobs.digest_runs"))
    reason = "nothing of it is left to send: it was read or removed meanwhile"
    assert outcome == NothingToSend(sent=False, reason=reason)
    assert server.messages == []
    assert (
        sql.one("select answer from procjobs.why_no_digest(%s)", facts.recipient_id)
        == f"its mail was not sent: {reason}"
    )


# -- many letters --------------------------------------------------------------------------------------------------


def test_many_letters_are_enqueued_by_the_rules_of_one(sql: Any, facts: Any) -> None:
    content = {"subject": "Hello", "body": "You."}
    letters = [
        {"template": "notification", "content": content, "recipient": str(facts.recipient_id), "urgency": "urgent"},
        {"template": "notification", "content": content, "address": "n@example.org", "address_name": "Nina",
         "notification_type": "reminder", "scheduled_at": "2099-01-01T00:00:00Z"},
        {"template": "notification", "content": content, "person": str(facts.user_id)},
    ]  # fmt: skip
    found = sql("select ordinal, id from procjobs.enqueue_letters(%s)", json.dumps(letters))
    assert [ordinal for ordinal, _ in found] == [1, 2, 3]
    singles = [
        sql.one(f"select procjobs.enqueue_letter('notification', %s, {arguments})", json.dumps(content), *values)
        for arguments, *values in (
            ("recipient => %s, urgency => 'urgent'", facts.recipient_id),
            (("address => 'n@example.org', address_name => 'Nina', notification_type => 'reminder', "
              "scheduled_at => '2099-01-01Z'"),),
            ("person => %s", facts.user_id),
        )
    ]  # fmt: skip
    row = (
        "select to_jsonb(n) - '{id,job_id,created_at,scheduled_for}'::text[], n.scheduled_for > n.created_at, "
        "to_jsonb(j) - '{id,args,pj_created_at}'::text[], j.args ->> 'notification_id' = n.id::text "
        "from procjobs.notification_jobs n join procrastinate_jobs j on j.id = n.job_id where n.id = %s"
    )
    for (_, one), single in zip(found, singles, strict=True):
        assert sql(row, one) == sql(row, single) != []
    assert sql("select * from procjobs.enqueue_letters('[]')") == []


@pytest.mark.parametrize(
    ("letters", "code", "problem"),
    [
        ("{}", "PJ023", "must be a JSON array"),
        ("[1]", "PJ023", "letter 1 of the array: it is number"),
        ('[{"templat": "x"}]', "PJ023", "letter 1 of the array: templat is not known"),
        ('[%s, {"template": "nonsense", "content": {}, "address": "a@b.example"}]', "PJ023", "letter 2 of the array"),
        (('[%s, {"template": "notification", "content": {"subject": "a", "body": "b"}, '
          '"recipient": "00000000-0000-0000-0000-000000000000"}]'), "PJ020", "letter 2 of the array: unknown"),
        (('[%s, {"template": "notification", "content": {"subject": "a", "body": "b"}, '
          '"address": "a@b@c"}]'), "PJ023", "not an e-mail"),
    ],
)  # fmt: skip
def test_one_bad_letter_of_many_is_named_and_none_is_enqueued(
    sql: Any, facts: Any, letters: str, code: str, problem: str
) -> None:
    good = '{"template": "notification", "content": {"subject": "a", "body": "b"}, "address": "a@b.example"}'
    before = sql.one("select count(*) from procjobs.notification_jobs")
    with pytest.raises(psycopg.Error) as refused:
        sql("select * from procjobs.enqueue_letters(%s)", letters.replace("%s", good))
    assert refused.value.sqlstate == code
    assert problem in f"{refused.value.diag.message_primary}; {refused.value.diag.message_detail}"
    assert sql.one("select count(*) from procjobs.notification_jobs") == before


# -- what is around ------------------------------------------------------------------------------------------------


def test_they_come_with_procjobs(sql: Any) -> None:
    sql("select procjobs.declare_digests()")
    assert sql("select name, times, \"group\", state from procjobs.schedule_list order by name") == [
        ("create_digest_jobs", "* * * * *", "digests", "active"),
        ("process_email_queue", "* * * * *", "email_queue", "active"),
    ]  # fmt: skip
    assert sql.one("select procjobs.declare_digests()") == 0
    sql("select procjobs.run_now('create_digest_jobs')")
    sql("call procjobs.run_sql_jobs()")
    assert sql("select status, result from procjobs.jobs where task = 'procjobs.create_digest_jobs'") == [
        ("succeeded", 0)
    ]


def test_the_doctor_sees_what_nobody_looks_at(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    make(sql, facts)
    at("2030-05-15 09:09Z")
    assert sql("select * from procjobs.doctor_digests()") == []
    at("2030-05-15 09:11Z")
    assert "2030-05-15 09:00:00 UTC" in sql("select finding from procjobs.doctor_digests()")[0][0]
    assert "nobody has looked" in sql.one("select answer from procjobs.why_no_digest(%s)", facts.recipient_id)


def test_what_came_of_them_is_forgotten_after_ninety_days(sql: Any, facts: Any, at: Any) -> None:
    at(NOON)
    make(sql, facts)
    for day in ("2030-05-15", "2030-05-16"):
        at(f"{day} 09:00Z")
        sql("select procjobs.create_digest_jobs()")
    at("2030-08-13 10:00Z")
    assert sql.one("select procjobs.forget_digest_runs()") == 1
    assert sql.one("select slot = '2030-05-16 09:00Z' from procjobs.digest_runs")
