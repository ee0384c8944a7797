"""Invitations: requested and changed in SQL, their mail sent through the queue, each link good for one acceptance."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Mailer, Sent
from procjobs.packs.invitations import Invites, accept, look, register_url
from procjobs.packs.notifications import NothingToSend, deliver
from tests.conftest import Sql
from tests.mail_server import MailServer

SITE = "https://jobs.example"
NEW = "nina@new.example"
Mail = Callable[..., Awaitable[str]]


@pytest.fixture
async def facts(db: Database, sql: Sql) -> demo.DemoFacts:
    """The demo without its own mail and invitations."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.pending_invites")
    sql("delete from procjobs.notification_jobs")
    return found


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
def invite(sql: Sql, facts: demo.DemoFacts) -> Callable[..., UUID]:
    """Maya, an admin, invites into the studio."""

    def call(email: str = NEW, role: str = "member", by: UUID | None = None, into: UUID | None = None) -> UUID:
        found: UUID = sql.one(
            "select procjobs.create_invite(%s, %s, %s, %s)",
            into or facts.organization_id, email, role, by or facts.user_id,
        )  # fmt: skip
        return found

    return call


@pytest.fixture
def post(sql: Sql, db: Database, server: MailServer) -> Mail:
    """One try to deliver the mail of an invitation, as a worker makes it; the token of the link in what arrived."""

    async def call(invite: UUID) -> str:
        mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>", timeout=0.5)
        try:
            assert isinstance(await deliver(db, mailer, Brand(), letter(sql, invite), worker="w1", site=SITE), Sent)
        finally:
            await mailer.close()
        return token(server)

    return call


def letter(sql: Sql, invite: UUID) -> UUID:
    found: UUID = sql.one("select notification_id from procjobs.pending_invites where id = %s", invite)
    return found


def token(server: MailServer) -> str:
    """From the newest mail; text and HTML have the same."""
    parts = [str(part.get_content()) for part in server.messages[-1].iter_parts()]
    found = {link for part in parts for link in re.findall(rf"{SITE}/invite/([\w-]+)", part)}
    assert len(parts) == 2 and len(found) == 1
    return str(found.pop())


def status(sql: Sql, invite: UUID) -> tuple[Any, ...]:
    """status, attempts and error."""
    (found,) = sql("select status, attempts, error from procjobs.pending_invites where id = %s", invite)
    return tuple(found)


def demo_id(sql: Sql, name: str) -> UUID:
    found: UUID = sql.one("select procjobs.demo_id(%s)", name)
    return found


def member(sql: Sql, email: str, organization: UUID) -> list[tuple[str]]:
    return sql(
        "select m.role from procjobs.host_memberships m join procjobs.host_people p on p.id = m.person_id "
        "where p.email = %s and m.organization_id = %s",
        email, organization,
    )  # fmt: skip


def register(sql: Sql, email: str = NEW) -> UUID:
    found: UUID = sql.one(
        "insert into procjobs_demo.people (name, email) values ('Nina', %s) returning id", email.lower()
    )
    return found


def refused(call: Callable[[], Any]) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as error:
        call()
    assert error.value.diag.message_detail and error.value.diag.message_hint
    return error.value


# Requested


def test_invitation_and_job_commit_or_vanish_together(sql: Sql, facts: demo.DemoFacts, dsn: str) -> None:
    query = "select procjobs.create_invite(%s, %s, 'member', %s)"
    with psycopg.connect(dsn) as producer:
        producer.execute(query, (facts.organization_id, NEW, facts.user_id))
        producer.rollback()
    assert sql.one("select count(*) from procjobs.pending_invites") == 0
    assert sql.one("select count(*) from public.procrastinate_jobs") == 0

    found = sql.one(query, facts.organization_id, f" {NEW.title()} ", facts.user_id)
    assert sql(
        """
        select i.email, i.email_key, i.status, i.attempts, i.max_attempts, i.expires_at - i.created_at = '30 days',
          n.address, n.template, j.task_name
        from procjobs.pending_invites i
        join procjobs.notification_jobs n on n.id = i.notification_id
        join public.procrastinate_jobs j on j.id = n.job_id
        where i.id = %s
        """,
        found,
    ) == [(NEW.title(), NEW, "PENDING", 0, 3, True, NEW.title(), "invitation", "procjobs.send_notification")]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"email": "nobody"}, "PJ050", "not an e-mail address"),
        ({"email": ""}, "PJ050", "not an e-mail address"),
        ({"email": None}, "PJ050", "not an e-mail address"),
        ({"email": "a@b.example\r\nBcc: c@d.example"}, "PJ050", "not an e-mail address"),
        ({"role": "emperor"}, "PJ051", "owner, admin, member"),
        ({"role": None}, "PJ051", "as null"),
        ({"by": uuid4()}, "PJ051", "none"),
        ({"into": uuid4()}, "PJ051", "none"),
        ({"email": "Aiko@harbourlane.example"}, "PJ054", "is a member already"),
    ],
)
def test_what_cannot_be_is_refused_with_a_mend(
    sql: Sql, facts: demo.DemoFacts, invite: Any, changes: dict[str, Any], code: str, said: str
) -> None:
    values = {"into": facts.organization_id, "email": NEW, "role": "member", "by": facts.admin_id, **changes}
    error = refused(lambda: sql("select procjobs.create_invite(%s, %s, %s, %s)", *(
        values[key] for key in ("into", "email", "role", "by"))))  # fmt: skip
    assert error.sqlstate == code and said in f"{error.diag.message_primary} {error.diag.message_detail}"
    assert sql.one("select count(*) from procjobs.pending_invites") == 0


def test_who_may_not_give_a_role_does_not(sql: Sql, invite: Any) -> None:
    assert refused(lambda: invite(role="owner")).sqlstate == "PJ051"  # Maya is an admin
    assert refused(lambda: invite(by=demo_id(sql, "aiko"))).sqlstate == "PJ051"  # a member


def test_a_second_invitation_for_an_address_is_the_first(sql: Sql, invite: Any) -> None:
    first = invite()
    assert invite(NEW.upper()) == first
    assert sql.one("select count(*) from public.procrastinate_jobs") == 1
    error = refused(lambda: invite(role="admin"))
    assert error.sqlstate == "PJ053" and "revoke_invite" in (error.diag.message_hint or "")
    sql("select procjobs.revoke_invite(%s)", first)
    assert invite(role="admin") != first


def test_one_whose_mail_failed_is_sent_again_when_asked_for_again(sql: Sql, invite: Any) -> None:
    first = invite()
    old = letter(sql, first)
    sql(
        "update procjobs.notification_jobs set status = 'failed', processed_at = now(), last_error = '550 no' "
        "where id = %s",
        old,
    )
    assert status(sql, first) == ("FAILED", 0, "550 no")
    assert invite() == first
    assert status(sql, first) == ("PENDING", 0, None) and letter(sql, first) != old


def test_one_that_has_expired_makes_room_for_another(sql: Sql, invite: Any) -> None:
    first = invite()
    sql("update procjobs.pending_invites set expires_at = now() - interval '1 s'")
    second = invite()
    assert second != first and status(sql, first)[0] == "EXPIRED"
    assert refused(lambda: sql("select procjobs.resend_invite(%s)", first)).sqlstate == "PJ053"


async def test_many_get_an_answer_each(db: Database, sql: Sql, facts: demo.DemoFacts, invite: Any) -> None:
    invite("open@new.example")
    invite("other@new.example", role="admin")

    async def database() -> Database:
        return db

    invites = Invites(database)
    found = await invites.create_many(
        facts.organization_id,
        [
            "a@new.example",
            "A@new.example",
            "nobody",
            "aiko@harbourlane.example",
            "open@new.example",
            "other@new.example",
        ],
        "member",
        invited_by=facts.user_id,
    )
    assert [(answer.email, answer.outcome) for answer in found] == [
        ("a@new.example", "created"),
        ("nobody", "invalid"),
        ("aiko@harbourlane.example", "member"),
        ("open@new.example", "open"),
        ("other@new.example", "other_role"),
    ]
    assert [bool(answer.problem) for answer in found] == [False, True, True, False, True]
    listed = await invites.list(facts.organization_id)
    assert {one.email for one in listed} == {"a@new.example", "open@new.example", "other@new.example"}
    assert await invites.resend(listed[0].id, by=facts.user_id) > listed[0].created_at
    assert await invites.revoke(listed[0].id) and not await invites.revoke(listed[0].id)
    assert [one.id for one in await invites.list(status="revoked")] == [listed[0].id]


# Sent


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


# Accepted


async def test_a_look_changes_nothing(sql: Sql, db: Database, invite: Any, post: Mail) -> None:
    secret = await post(invite())

    def rows() -> Any:
        return sql(
            "select i::text from procjobs.pending_invites i union all select s::text from procjobs.letter_secrets s"
        )

    before = rows()
    found = await look(db, secret)
    assert (found.state, found.organization, found.inviter, found.role, found.email) == (
        "unknown_person", "Harbour Lane", "Maya Lindgren", "member", NEW
    )  # fmt: skip
    assert rows() == before


async def test_a_person_with_the_address_joins_on_acceptance_only(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail
) -> None:
    secret = await post(invite("Liam@HarbourLane.example", role="admin"))  # who belongs to another organization
    assert member(sql, "liam@harbourlane.example", facts.organization_id) == []
    found = await accept(db, secret)
    assert (found.state, found.role, found.person_id) == ("accepted", "admin", demo_id(sql, "liam"))
    assert member(sql, "liam@harbourlane.example", facts.organization_id) == [("admin",)]
    assert member(sql, "liam@harbourlane.example", demo_id(sql, "press")) == [("owner",)]
    assert (await accept(db, secret)).state == "already_accepted"
    assert sql("select status, accepted_by, accepted_at is not null from procjobs.pending_invites") == [
        ("ACCEPTED", demo_id(sql, "liam"), True)
    ]


async def test_who_is_unknown_registers_first_and_joins_then(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail
) -> None:
    secret = await post(invite())
    assert (await accept(db, secret)).state == "unknown_person"
    assert await register_url(db, secret, f"{SITE}/invite/") == (
        f"/register?email=nina%40new.example&continue=https%3A%2F%2Fjobs.example%2Finvite%2F{secret}"
    )
    register(sql)
    assert await register_url(db, secret, SITE) is None
    assert (await accept(db, secret)).state == "accepted"
    assert member(sql, NEW, facts.organization_id) == [("member",)]


async def test_an_application_that_hides_where_to_go_on_is_told_it(
    sql: Sql, db: Database, invite: Any, post: Mail
) -> None:
    sql(
        "create or replace function procjobs.host_register_url(p_email text, p_continue text) returns text "
        "language sql as $$ select '/join/' || encode(p_continue::bytea, 'hex') $$"
    )
    secret = await post(invite())
    assert await register_url(db, secret, "/invite/") == f"/join/{f'/invite/{secret}'.encode().hex()}"


async def end(sql: Sql, invite: UUID, how: str) -> None:
    match how:
        case "expired":
            sql("update procjobs.pending_invites set expires_at = now()")
        case "revoked":
            sql("select procjobs.revoke_invite(%s)", invite)
        case "replaced":
            sql("select procjobs.resend_invite(%s)", invite)
        case "gone":
            sql("delete from procjobs_demo.organizations where id = procjobs.demo_id('studio')")
        case "accepted_by_other":
            sql("update procjobs_demo.people set email = 'new@owner.example' where email = %s", NEW)
            register(sql)
        case "not_found":
            sql("delete from procjobs.pending_invites")


@pytest.mark.parametrize("how", ["expired", "revoked", "replaced", "gone", "not_found"])
async def test_a_link_whose_time_is_over_says_so_and_does_nothing(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail, how: str
) -> None:
    found = invite()
    secret = await post(found)
    register(sql)
    assert (await look(db, secret)).state == "open"
    await end(sql, found, how)
    assert (await look(db, secret)).state == how
    assert (await accept(db, secret)).state == how
    assert member(sql, NEW, facts.organization_id) == []


async def test_a_link_that_somebody_else_used_says_so(sql: Sql, db: Database, invite: Any, post: Mail) -> None:
    found = invite()
    secret = await post(found)
    register(sql)
    assert (await accept(db, secret)).state == "accepted"
    await end(sql, found, "accepted_by_other")
    assert (await accept(db, secret)).state == "accepted_by_other"


async def test_who_became_a_member_meanwhile_keeps_the_role(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail
) -> None:
    found = invite(role="admin")
    secret = await post(found)
    sql("select procjobs.host_add_member(%s, %s, 'member')", facts.organization_id, register(sql))
    assert (await look(db, secret)).state == "already_member"
    assert (await accept(db, secret)).state == "already_member"
    assert member(sql, NEW, facts.organization_id) == [("member",)] and status(sql, found)[0] == "ACCEPTED"


async def test_it_is_for_the_invited_address_only(sql: Sql, db: Database, facts: Any, invite: Any, post: Mail) -> None:
    hashed = sha256((await post(invite())).encode()).digest()
    query = "select state from procjobs.accept_invite(%s, %s)"
    assert sql.one(query, hashed, demo_id(sql, "liam")) == "other_address"
    assert sql.one(query, hashed, uuid4()) == "unknown_person"
    assert sql.one(query, hashed, register(sql, NEW.title())) == "accepted"


async def test_a_member_that_cannot_be_added_uses_nothing_up(sql: Sql, db: Database, invite: Any, post: Mail) -> None:
    found = invite()
    secret = await post(found)
    register(sql)
    sql(
        "create or replace function procjobs.host_add_member(p_organization uuid, p_person uuid, p_role text) "
        "returns boolean language plpgsql as $$ begin raise exception 'no seats left'; end $$"
    )
    with pytest.raises(Exception, match="no seats left"):
        await accept(db, secret)
    assert status(sql, found)[0] == "SENT"


def test_what_was_accepted_cannot_be_revoked_or_sent_again(sql: Sql, facts: demo.DemoFacts, invite: Any) -> None:
    found = invite()
    sql("update procjobs.pending_invites set status = 'ACCEPTED', accepted_at = now(), accepted_by = %s", facts.user_id)
    for call in ("revoke_invite", "resend_invite"):
        assert refused(lambda call=call: sql(f"select procjobs.{call}(%s)", found)).sqlstate == "PJ053"  # type: ignore[misc]
        assert refused(lambda call=call: sql(f"select procjobs.{call}(%s)", uuid4())).sqlstate == "PJ052"  # type: ignore[misc]


def test_who_may_not_invite_may_not_change_an_invitation(sql: Sql, invite: Any) -> None:
    found = invite()
    for call in ("revoke_invite", "resend_invite"):
        query = f"select procjobs.{call}(%s, %s)"
        assert refused(lambda query=query: sql(query, found, demo_id(sql, "aiko"))).sqlstate == "PJ051"  # type: ignore[misc]


def test_many_at_once_wait_for_each_other_and_never_deadlock(dsn: str, sql: Sql, facts: demo.DemoFacts) -> None:
    """Created, sent again, swept, tried, revoked and accepted at the same time."""
    register(sql)
    one = "(select {} from procjobs.{} order by random() limit 1)"
    invites, letters, secrets = (
        one.format("id", "pending_invites"),
        one.format("id", "notification_jobs"),
        "letter_secrets",
    )
    tries = "(select max(id) from procjobs.notification_delivery_logs)"
    statements = [
        f"select procjobs.create_invite('{facts.organization_id}', '{NEW}', 'member', '{facts.user_id}')",
        f"select procjobs.resend_invite({invites})",
        "select procjobs.process_pending_invites()",
        f"select procjobs.begin_delivery({letters}, 'w', 'x.example')",
        f"select procjobs.keep_letter_secret({tries}, sha256(gen_random_uuid()::text::bytea))",
        f"select procjobs.accept_invite({one.format('hash', secrets)})",
        f"select procjobs.revoke_invite({invites})",
    ]

    def hammer(statement: str) -> set[str | None]:
        said: set[str | None] = set()
        with psycopg.connect(dsn, autocommit=True) as connection:
            for _ in range(25):
                try:
                    connection.execute(statement.encode())
                except psycopg.Error as error:
                    said.add(error.sqlstate)
        return said

    with ThreadPoolExecutor(len(statements)) as pool:
        codes = set().union(*pool.map(hammer, statements))
    assert codes <= {"PJ052", "PJ053", "PJ054"}  # none yet, accepted, a member meanwhile
    open_ones = "select count(*) from procjobs.pending_invites where status in ('PENDING', 'SENT', 'FAILED')"
    assert sql.one(open_ones) <= 1
    assert len(member(sql, NEW, facts.organization_id)) <= 1


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


# By schedule


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


# Seen


def test_a_reader_sees_no_address_and_nothing_that_opens(sql: Sql, invite: Any) -> None:
    invite()
    sql("set role procjobs_reader")
    try:
        assert sql("select email, status from procjobs.invites") == [("n...@new.example", "PENDING")]
        assert sql("select email from procjobs.list_invites()") == [("n...@new.example",)]
        for table in ("pending_invites", "letter_secrets"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                sql(f"select * from procjobs.{table}")
    finally:
        sql("reset role")


async def test_the_roles_of_application_and_worker_suffice(sql: Sql, facts: demo.DemoFacts, invite: Any) -> None:
    sql("set role procjobs_producer")
    found = invite()
    assert sql("select state from procjobs.peek_invite(sha256('x'))") == [("not_found",)]
    assert sql("select state from procjobs.accept_invite(sha256('x'))") == [("not_found",)]
    sql("select procjobs.resend_invite(%s), procjobs.revoke_invite(%s)", found, found)
    sql("set role procjobs_worker")
    assert sql(
        "select procjobs.process_pending_invites(), procjobs.expire_invites(), procjobs.send_invite(%s)", found
    ) == [(0, 0, None)]
    sql("reset role")
