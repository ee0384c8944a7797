"""What an application calls to have an e-mail sent: queued in its own transaction, with an answer for whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import procrastinate
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import procjobs
from procjobs import demo, errors
from procjobs.app import default_app
from procjobs.db import Database
from procjobs.embedded import EmbeddedPostgres
from procjobs.settings import Settings
from tests.conftest import Sql
from tests.mail_server import MailServer

CONTENT = {"subject": "Dinner", "body": "At seven."}
NEW, MEMBER = "nina@new.example", "maya@harbourlane.example"


@pytest.fixture
async def facts(db: Database, sql: Sql) -> demo.DemoFacts:
    """The demo without its own mail and invitations."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.pending_invites")
    sql("delete from procjobs.notification_jobs")
    return found


@pytest.fixture
async def app(dsn: str, facts: demo.DemoFacts) -> AsyncIterator[procjobs.App]:
    """As an application has it whose database user may enqueue and nothing else."""
    made = procjobs.App(make_conninfo(dsn, options="-c role=procjobs_producer"))
    async with made.open_async():
        yield made


def queued(sql: Sql) -> list[tuple[Any, ...]]:
    return sql(
        "select n.id, j.id, n.template, n.content ->> 'subject' from procjobs.notification_jobs n "
        "join public.procrastinate_jobs j on j.id = n.job_id"
    )


async def test_a_notification_is_queued_and_the_answer_says_so(
    app: procjobs.App, sql: Sql, facts: demo.DemoFacts
) -> None:
    made = await app.notify_async(
        facts.recipient_id, CONTENT, group=facts.group_id, urgency="urgent", delay_minutes=5, requested_by=facts.user_id
    )
    assert type(made) is procjobs.Queued
    assert queued(sql) == [(made.job_id, made.queue_job_id, "notification", "Dinner")]
    assert sql("select urgency, group_id, scheduled_for - created_at = '5 min' from procjobs.notification_jobs") == [
        ("urgent", facts.group_id, True)
    ]
    assert made.status_code == 202
    assert made.response() == {
        "success": True,
        "messageId": str(made.job_id),
        "jobId": str(made.job_id),
        "status": "queued",
        "statusCode": 202,
        "message": "The notification is queued and will be sent in the background.",
    }


async def test_an_invitation_is_queued_and_the_answer_says_so(
    app: procjobs.App, sql: Sql, facts: demo.DemoFacts
) -> None:
    made = await app.invite_async(facts.organization_id, NEW, "member", invited_by=facts.user_id)
    assert type(made) is procjobs.InviteQueued and made.created
    assert queued(sql) == [(made.job_id, made.queue_job_id, "invitation", None)]
    assert sql("select id, email, notification_id from procjobs.pending_invites") == [
        (made.invite_id, NEW, made.job_id)
    ]
    answer = made.response()
    assert (answer["inviteId"], answer["jobId"]) == (str(made.invite_id), str(made.job_id))
    assert (answer["success"], answer["status"], answer["statusCode"]) == (True, "queued", 202)

    again = await app.invite_async(facts.organization_id, NEW, "member", invited_by=facts.user_id)
    assert (again.invite_id, again.job_id, again.created) == (made.invite_id, made.job_id, False)
    assert "open already" in again.response()["message"] and len(queued(sql)) == 1
    assert sql.one(
        "select procjobs.create_invite(%s, %s, 'member', %s)", facts.organization_id, NEW, facts.user_id
    ) == (made.invite_id)


async def test_an_invitation_whose_mail_is_forgotten_has_no_job(
    app: procjobs.App, sql: Sql, facts: demo.DemoFacts
) -> None:
    made = await app.invite_async(facts.organization_id, NEW, "member", invited_by=facts.user_id)
    sql("update procjobs.pending_invites set status = 'SENT'")
    sql("delete from procjobs.notification_jobs")
    again = await app.invite_async(facts.organization_id, NEW, "member", invited_by=facts.user_id)
    assert (again.invite_id, again.job_id, again.message_id, again.created) == (made.invite_id, None, None, False)
    assert again.response()["jobId"] is None


def test_programs_without_a_loop_ask_too(dsn: str, sql: Sql) -> None:
    async def seed() -> demo.DemoFacts:
        async with Database(dsn) as db:
            return await demo.seed(db)

    facts = asyncio.run(seed())
    for connector in (procrastinate.PsycopgConnector(conninfo=dsn), procrastinate.SyncPsycopgConnector(conninfo=dsn)):
        sql("delete from procjobs.pending_invites")
        sql("delete from procjobs.notification_jobs")
        app = procjobs.App(connector=connector)
        with app.open(), psycopg.connect(dsn) as connection:
            app.notify(facts.recipient_id, CONTENT, connection=connection)
            app.invite(facts.organization_id, NEW, "member", invited_by=facts.user_id, connection=connection)
            connection.rollback()
            assert sql.one("select count(*) from procjobs.notification_jobs") == 0
            made = app.notify(facts.recipient_id, CONTENT, connection=connection)
            connection.commit()
            invite = app.invite(facts.organization_id, NEW, "member", invited_by=facts.user_id)
            with pytest.raises(errors.AlreadyMember):
                app.invite(facts.organization_id, MEMBER, "member", invited_by=facts.user_id)
        assert {found[0] for found in sql("select id from procjobs.notification_jobs")} == {
            made.job_id, invite.job_id
        }  # fmt: skip


async def test_it_is_part_of_the_caller_s_transaction(
    app: procjobs.App, dsn: str, sql: Sql, facts: demo.DemoFacts
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await app.notify_async(facts.recipient_id, CONTENT, connection=connection)
        await app.invite_async(facts.organization_id, NEW, "member", invited_by=facts.user_id, connection=connection)
        assert queued(sql) == []
        await connection.rollback()
        assert queued(sql) == []
        made = await app.notify_async(facts.recipient_id, CONTENT, connection=connection)
        await connection.commit()
    assert [found[0] for found in queued(sql)] == [made.job_id]


REFUSED: dict[str, tuple[type[errors.DatabaseError], str, int, dict[str, Any]]] = {
    "no subject": (errors.InvalidNotification, "PJ023", 400, {"content": {"body": "x"}}),
    "no such way": (errors.InvalidNotification, "PJ023", 400, {"delivery_method": "fax"}),
    "no such recipient": (errors.UnknownRecipient, "PJ020", 400, {"recipient": uuid4()}),
    "no such group": (errors.UnknownGroup, "PJ021", 400, {"group": uuid4()}),
    "no such update": (errors.UnknownUpdate, "PJ022", 400, {"update": uuid4()}),
    "not theirs": (errors.NotificationNotAllowed, "PJ024", 403, {"requested_by": uuid4()}),
    "not theirs, whether there or not": (
        errors.NotificationNotAllowed, "PJ024", 403, {"recipient": uuid4(), "requested_by": uuid4()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_is_told_apart(app: procjobs.App, sql: Sql, facts: demo.DemoFacts, case: str) -> None:
    cls, state, code, changes = REFUSED[case]
    arguments: dict[str, Any] = {"recipient": facts.recipient_id, "content": CONTENT, **changes}
    with pytest.raises(cls) as refused:
        await app.notify_async(**arguments)
    error = refused.value
    assert (error.sqlstate, error.status_code) == (state, code) and error.detail and error.hint
    assert queued(sql) == []


INVITES: dict[str, tuple[type[errors.DatabaseError], str, int, dict[str, Any]]] = {
    "no address": (errors.InvalidInvite, "PJ050", 400, {"email": "nina"}),
    "no permission": (errors.InviteNotAllowed, "PJ051", 403, {"invited_by": uuid4()}),
    "no organization": (errors.InviteNotAllowed, "PJ051", 403, {"organization": uuid4()}),
    "a member": (errors.AlreadyMember, "PJ054", 409, {"email": MEMBER}),
    "another role": (errors.InviteConflict, "PJ053", 409, {"email": "ben@new.example", "role": "admin"}),
}


@pytest.mark.parametrize("case", INVITES)
async def test_whom_nobody_can_invite_is_told_apart(
    app: procjobs.App, sql: Sql, facts: demo.DemoFacts, case: str
) -> None:
    cls, state, code, changes = INVITES[case]
    usual: dict[str, Any] = {
        "organization": facts.organization_id,
        "email": NEW,
        "role": "member",
        "invited_by": facts.user_id,
    }
    await app.invite_async(**{**usual, "email": "ben@new.example"})
    with pytest.raises(cls) as refused:
        await app.invite_async(**{**usual, **changes})
    error = refused.value
    assert (error.sqlstate, error.status_code) == (state, code) and error.detail and error.hint
    assert len(queued(sql)) == 1


async def test_what_is_no_json_and_no_option_is_refused_here(app: procjobs.App, facts: demo.DemoFacts) -> None:
    with pytest.raises(errors.ArgumentsMalformed) as refused:
        await app.notify_async(facts.recipient_id, {"subject": "x", "body": "\0"})
    assert refused.value.status_code == 400
    with pytest.raises(TypeError, match="urgent"):
        await app.notify_async(facts.recipient_id, CONTENT, urgent=True)


async def test_while_the_database_is_away_it_says_so_and_sends_nothing(
    server: EmbeddedPostgres, eventually: Any
) -> None:
    async with MailServer() as mail:
        settings = Settings(dsn=server.dsn(), smtp_host="127.0.0.1", smtp_port=mail.port)
        app = procjobs.App(
            connector=procrastinate.PsycopgConnector(conninfo=server.dsn(), timeout=1), settings=settings
        )
        async with app.open_async():
            server.stop()
            with pytest.raises(procjobs.QueueUnavailable) as away:
                await app.notify_async(uuid4(), CONTENT)
            with pytest.raises(procjobs.QueueUnavailable):
                await app.invite_async(uuid4(), NEW, "member", invited_by=uuid4())
        error = away.value
        assert str(error) == "the queue cannot take it now, since PostgreSQL is away, and nothing was sent"
        assert error.status_code == 503 and error.transient and error.detail and "try again" in (error.hint or "")
        assert mail.connections == 0


async def test_the_message_id_is_that_of_the_mail(app: procjobs.App, dsn: str, sql: Sql, facts: demo.DemoFacts) -> None:
    notification = await app.notify_async(facts.recipient_id, CONTENT)
    invite = await app.invite_async(facts.organization_id, NEW, "member", invited_by=facts.user_id)
    async with MailServer() as mail:
        worker = default_app(Settings(dsn=dsn, smtp_host="127.0.0.1", smtp_port=mail.port))
        async with worker.open_async():
            await worker.run_worker_async(wait=False, install_signal_handlers=False)
            assert (await worker.wait_for(notification.queue_job_id or 0, timeout=10)).status == "succeeded"
        sent = {str(message["Message-ID"]).strip("<>").partition("@")[0] for message in mail.messages}
    assert sent == {notification.message_id, invite.message_id}
    assert UUID(notification.message_id) == notification.job_id
