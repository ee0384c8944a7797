"""Invitations requested, asked for again, withdrawn and seen, each by whoever may."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.packs.invitations import Invites
from tests.conftest import Sql
from tests.packs.invitations.conftest import NEW, demo_id, letter, member, refused, register, status


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


def test_two_that_invite_the_same_people_at_once_do_not_wait_for_each_other(
    sql: Sql, facts: demo.DemoFacts, dsn: str, eventually: Callable[..., Any]
) -> None:
    """The second waits for Adam before it has Zoe, in whatever order it was given them."""
    query = "select outcome from procjobs.create_invites(%s, %s, 'member', %s)"
    people = ["zoe@new.example", "adam@new.example"]
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second, ThreadPoolExecutor() as pool:
        first.execute(query, (facts.organization_id, people[1:], facts.user_id))
        waiting = pool.submit(lambda: second.execute(query, (facts.organization_id, people, facts.user_id)).fetchall())
        eventually(lambda: sql.one("select wait_event_type = 'Lock' from pg_stat_activity where pid = %s",
            second.info.backend_pid))  # fmt: skip
        first.execute(query, (facts.organization_id, people[:1], facts.user_id))
        first.commit()
        assert waiting.result() == [("open",), ("open",)]
        second.rollback()


def test_a_slip_in_the_status_is_no_empty_list(sql: Sql, invite: Any) -> None:
    found = invite()
    for written in ("PENDING", "pending", None):
        assert sql.one("select id from procjobs.list_invites(in_status => %s)", written) == found
    error = refused(lambda: sql("select id from procjobs.list_invites(in_status => 'OPEN')"))
    assert error.sqlstate == "PJ009" and "PENDING, SENT" in (error.diag.message_hint or "")


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
