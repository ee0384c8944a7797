"""Invitations into the demo's studio: who invites, what arrives, and what became of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Mailer, Sent
from procjobs.packs.notifications import deliver
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
