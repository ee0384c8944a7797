"""An invitation's mail: sent through the queue, followed by the invitation, looked after by schedule."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Mailer
from procjobs.packs.invitations import accept, look, register_url
from procjobs.packs.notifications import NothingToSend, deliver
from tests.conftest import Sql
from tests.mail_server import MailServer
from tests.packs.invitations.conftest import NEW, SITE, Mail, letter, refused, register, status


async def test_the_mail_says_all_and_the_invitation_follows_it(
    sql: Sql, invite: Any, post: Mail, server: MailServer
) -> None:
    found = invite()
    assert len(base64.urlsafe_b64decode(await post(found) + "=")) == 32
    (message,) = server.messages
    assert message["To"] == NEW and message["Subject"] == "Maya Lindgren invites you to Harbour Lane"
    for part in message.iter_parts():
        words = " ".join(str(part.get_content()).split())
        for said in ("Welcome to Harbour Lane", "Maya Lindgren", "as <strong>member", "Accept the invitation"):
            assert said.replace("<strong>", "") in re.sub(r"</?strong>", "", words), said
        assert "(Europe/Stockholm)" in words
    assert status(sql, found) == ("SENT", 1, None)
    assert sql.one("select last_attempt is not null from procjobs.pending_invites")


async def test_the_link_can_be_read_and_copied_where_the_button_does_not_work(
    sql: Sql, invite: Any, post: Mail, server: MailServer
) -> None:
    link = f"{SITE}/invite/{await post(invite())}"
    text, html = (str(part.get_content()) for part in server.messages[0].iter_parts())
    assert link in text.split()
    shown = re.sub(r"<[^>]*>", " ", html.partition("<body")[2])
    assert link in shown.split(), "as words that one sees, beside the button's address"
    assert html.count(f'href="{link}"') == 2


async def test_a_mail_server_that_refuses_fails_the_invitation(
    db: Database, sql: Sql, invite: Any, server: MailServer
) -> None:
    found = invite()
    server.replies = {"RCPT": ["451 later", "550 no such user"]}
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")
    await deliver(db, mailer, Brand(), letter(sql, found), worker="w1", site=SITE)
    assert status(sql, found) == ("PENDING", 1, "451 later")
    await deliver(db, mailer, Brand(), letter(sql, found), worker="w1", site=SITE)
    assert status(sql, found) == ("FAILED", 2, "550 no such user")
    await mailer.close()


async def test_a_mail_that_left_twice_has_no_dead_link(sql: Sql, db: Database, invite: Any, post: Mail) -> None:
    found = invite()
    first = await post(found)
    sql("update procjobs.notification_jobs set status = 'pending', processed_at = null")  # nobody saw that it arrived
    second = await post(found)
    assert first != second
    register(sql)
    assert [(await look(db, each)).state for each in (first, second)] == ["open", "open"]
    assert (await accept(db, first)).state == "accepted"
    assert (await accept(db, second)).state == "already_accepted"


async def test_what_opens_an_invitation_is_in_the_mail_and_nowhere_else(
    sql: Sql, db: Database, invite: Any, post: Mail, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = await post(invite())
    await look(db, secret)
    await register_url(db, secret, f"{SITE}/invite/")
    await accept(db, secret)
    tables = sql(
        "select format('%I.%I', schemaname, tablename) from pg_tables "
        "where schemaname in ('public', 'procjobs', 'procjobs_demo')"
    )
    rows = "\n".join(row for (table,) in tables for (row,) in sql(f"select t::text from {table} t"))
    asked = "\n".join(query or "" for (query,) in sql("select query from pg_stat_activity"))
    said = "\n".join(
        record.getMessage() for record in caplog.records if record.name != "mail.log"
    )  # the mail server's own
    assert secret not in rows + asked + said
    assert sha256(secret.encode()).hexdigest() in rows  # the search finds what is there


async def test_a_mail_that_is_not_wanted_any_more_does_not_leave(
    db: Database, sql: Sql, invite: Any, server: MailServer
) -> None:
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")

    async def reason(notification: UUID) -> str:
        outcome = await deliver(db, mailer, Brand(), notification, worker="w1", site=SITE)
        assert isinstance(outcome, NothingToSend) and not outcome.sent
        # What nobody wants any more has not failed: it is in no count of failures, and no try at all.
        ended = "failed" if "tried" in outcome.reason else "cancelled"
        query = "select status, last_error from procjobs.notification_jobs where id = %s"
        assert sql(query, notification) == [(ended, outcome.reason)]
        tries = sql("select status from procjobs.notification_delivery_logs where job_id = %s", notification)
        assert tries == ([("refused",)] if ended == "failed" else [])
        return outcome.reason

    found = invite()
    first = letter(sql, found)
    sql("select procjobs.resend_invite(%s)", found)
    assert await reason(first) == "the invitation was sent anew, or is gone"
    sql("update procjobs.pending_invites set attempts = 3")
    assert await reason(letter(sql, found)) == "it was tried 3 times"
    assert status(sql, found)[0] == "FAILED"
    sql("select procjobs.resend_invite(%s), procjobs.revoke_invite(%s)", found, found)
    assert await reason(letter(sql, found)) == "the invitation is REVOKED"
    sql("delete from procjobs.pending_invites")
    found = invite()
    sql("update procjobs.pending_invites set expires_at = now()")
    assert await reason(letter(sql, found)) == "the invitation has expired"
    assert server.raw == [] and sql.one("select count(*) from procjobs.letter_secrets") == 0
    await mailer.close()


async def test_a_letter_that_somebody_else_makes_opens_nothing(
    db: Database, sql: Sql, invite: Any, server: MailServer
) -> None:
    content = f'{{"secret_path": "/invite/", "invite_id": "{invite()}"}}'
    forged = sql.one("select procjobs.enqueue_letter('invitation', %s::jsonb, address => 'thief@x.example')", content)
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")
    assert isinstance(await deliver(db, mailer, Brand(), forged, worker="w1", site=SITE), NothingToSend)
    assert server.raw == []
    await mailer.close()


def test_a_try_and_its_secret_lock_in_the_same_order(dsn: str, sql: Sql, invite: Any, eventually: Any) -> None:
    found = letter(sql, invite())
    delivery = sql.one("select delivery_id from procjobs.begin_delivery(%s, 'w', 'x.example')", found)
    keep = f"select procjobs.keep_letter_secret({delivery}, sha256('x'))"
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second, ThreadPoolExecutor(1) as pool:
        first.execute("select from procjobs.notification_jobs where id = %s for update", (found,))
        kept = pool.submit(second.execute, keep.encode())
        waits = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        eventually(lambda: sql.one(waits, second.info.backend_pid))
        first.execute("update procjobs.notification_jobs set status = 'pending' where id = %s", (found,))
        first.commit()
        assert kept.result().fetchall() == [(None,)]


def test_what_has_no_mail_under_way_gets_one(sql: Sql, facts: demo.DemoFacts, invite: Any) -> None:
    waits, by_hand = invite(), uuid4()
    insert = (
        "insert into procjobs.pending_invites (id, organization_id, email, role, invited_by) "
        "values (%s, %s, %s, 'member', %s)"
    )
    sql(insert, by_hand, facts.organization_id, "hand@new.example", facts.user_id)
    sql(insert, uuid4(), facts.organization_id, "no address", facts.user_id)
    sql(insert, uuid4(), uuid4(), "lost@new.example", facts.user_id)
    before = letter(sql, waits)
    assert sql.one("select procjobs.process_pending_invites()") == 1
    assert letter(sql, waits) == before and letter(sql, by_hand)
    assert sql("select email, error from procjobs.pending_invites where status = 'FAILED' order by email") == [
        ("lost@new.example", "the organization is gone"),
        ("no address", "the letter cannot be delivered: address 'no address' is not an e-mail address"),
    ]
    assert sql.one("select procjobs.process_pending_invites()") == 0


def test_a_mail_that_was_lost_is_sent_again_until_the_tries_are_used_up(sql: Sql, invite: Any) -> None:
    found = invite()
    sql("update procjobs.pending_invites set attempts = 2")
    sql("delete from procjobs.notification_jobs")
    assert sql.one("select procjobs.process_pending_invites()") == 1
    sql("update procjobs.pending_invites set attempts = 3")
    sql("delete from procjobs.notification_jobs")
    assert sql.one("select procjobs.process_pending_invites()") == 0
    assert status(sql, found) == ("FAILED", 3, "it was tried 3 times")


def test_a_dead_letter_that_runs_again_has_fresh_tries(sql: Sql, invite: Any) -> None:
    found = invite()
    sql("update procjobs.notification_jobs set status = 'failed', processed_at = now(), last_error = 'no'")
    sql("update procjobs.pending_invites set attempts = 3")
    sql("update procjobs.notification_jobs set status = 'pending', processed_at = null")
    assert status(sql, found)[:2] == ("PENDING", 0)


def test_what_expired_is_marked_and_goes_after_thirty_days(sql: Sql, invite: Any) -> None:
    found, kept = invite(), invite("accepted@new.example")
    sql(
        "update procjobs.pending_invites set status = 'ACCEPTED', accepted_at = now(), accepted_by = %s where id = %s",
        kept,
        kept,
    )
    sql("update procjobs.pending_invites set expires_at = now() - interval '29 days'")
    sql("insert into procjobs.letter_secrets select sha256('x'), %s, %s, now()", letter(sql, found), found)
    assert sql.one("select status from procjobs.invites where id = %s", found) == "EXPIRED"  # before anybody marks it
    assert sql.one("select procjobs.expire_invites()") == 0
    assert status(sql, found)[0] == "EXPIRED"
    sql("update procjobs.pending_invites set expires_at = now() - interval '31 days'")
    assert sql.one("select procjobs.expire_invites()") == 1
    assert sql("select id from procjobs.pending_invites") == [(kept,)]
    assert sql("select hash from procjobs.letter_secrets") == []


@pytest.mark.parametrize("keep", ["-1 day", None])
def test_a_slip_in_the_span_removes_no_open_invitation(sql: Sql, invite: Any, keep: str | None) -> None:
    found = invite()
    sql("update procjobs.pending_invites set expires_at = now() + interval '1 hour'")
    error = refused(lambda: sql("select procjobs.expire_invites(%s)", keep))
    assert error.sqlstate == "PJ009" and "expire_invites" in (error.diag.message_hint or "")
    assert status(sql, found)[0] == "PENDING"


def test_the_schedules_come_with_procjobs(sql: Sql) -> None:
    sql("select procjobs.declare_invitations()")
    assert sql("select name, cron, task from procjobs.schedules where task like '%invites' order by name") == [
        ("expire_invites", "0 2 * * *", "procjobs.expire_invites"),
        ("process_pending_invites", "*/2 * * * *", "procjobs.process_pending_invites"),
    ]
    assert sql.one("select procjobs.declare_invitations()") == 0
    assert isinstance(
        sql.one("select procjobs.defer('SEND_INVITE_EMAIL', jsonb_build_object('invite', %s::text))", str(uuid4())), int
    )
