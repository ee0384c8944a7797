"""Looking for what is wrong, from the outside in: server, schema, host bindings, workers, queues, mail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import psycopg

from procjobs import migrate as migrations
from procjobs import watch
from procjobs.db import Calls, Connection, Transaction, connect
from procjobs.errors import ProcjobsError
from procjobs.settings import Settings

__all__ = ["Finding", "examine"]

#: A wait longer than this in a queue that is not paused deserves a word.
LONG_WAIT = timedelta(minutes=5)
#: Schedules are computed by the database's clock; people read this machine's.
SKEW = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `mend` says what to do where something is wrong."""

    subject: str
    verdict: Literal["ok", "warning", "wrong"]
    text: str
    mend: str | None = None


async def examine(settings: Settings, dsn: str, *, mailbox: str | None = None) -> list[Finding]:
    """Everything that was looked at, in order; never raises for what it finds.

    mailbox: where the mail catcher of a running `up` keeps all mail.
    """
    try:
        connection = await connect(dsn, connect_timeout=5)
    except ProcjobsError as error:
        return [Finding("server", "wrong", _first_line(error), "check DATABASE_URL and that the server is running")]
    try:
        found = [_server(connection), *await _names(connection), *await _schema(settings, dsn)]
        if any(finding.verdict == "wrong" for finding in found):
            return found
        for look in (_clock, _bindings, _workers, _queues):
            found += await _guarded(look, Transaction(connection))
    finally:
        await connection.close()
    return [*found, await _mail(settings) if mailbox is None else Finding("mail", "ok", f"all mail goes to {mailbox}")]


def _server(connection: Connection) -> Finding:
    major = connection.info.server_version // 10000
    text = f"PostgreSQL {major}, database {connection.info.dbname}, as {connection.info.user}"
    if major < migrations.OLDEST_SERVER:
        return Finding("server", "wrong", text, f"upgrade to PostgreSQL {migrations.OLDEST_SERVER} or newer")
    return Finding("server", "ok", text)


async def _names(connection: Connection) -> list[Finding]:
    """A role named like our schema finds our objects under bare names, by the `"$user"` of its search_path."""
    query = "select current_user = 'procjobs' and 'procjobs' = any (current_schemas(false)) as shadowed"
    try:
        row = await (await connection.execute(query)).fetchone()
    except psycopg.Error:  # the next look says what is wrong with the connection
        return []
    if row is None or not row["shadowed"]:
        return []
    text = 'as procjobs, "$user" in search_path is our schema: bare names in your SQL may mean objects of procjobs'
    return [
        Finding("server", "warning", text, "use another login role, or: alter role procjobs set search_path = public")
    ]


async def _schema(settings: Settings, dsn: str) -> list[Finding]:
    try:
        problems = await asyncio.to_thread(migrations.check, dsn, host_sql=settings.host_sql)
    except ProcjobsError as error:
        return [Finding("schema", "wrong", _first_line(error), error.hint)]
    if not problems:
        return [Finding("schema", "ok", "as this version of procjobs left it")]
    return [Finding("schema", "wrong", problem, "run: procjobs migrate") for problem in problems]


async def _guarded(look: Callable[[Calls], AsyncIterator[Finding]], calls: Calls) -> list[Finding]:
    try:
        return [finding async for finding in look(calls)]
    except ProcjobsError as error:
        return [Finding(look.__name__.strip("_"), "wrong", _first_line(error), error.hint)]


async def _clock(calls: Calls) -> AsyncIterator[Finding]:
    before = datetime.now(UTC)
    told: datetime = await calls.value("clock")
    after = datetime.now(UTC)
    skew = max(before - told, told - after, timedelta(0))
    if skew > SKEW:
        text = f"the database's clock is {skew.total_seconds():.0f} s off this machine's"
        yield Finding("clock", "warning", text, "let both machines keep time by NTP; the database's clock decides")
    else:
        yield Finding("clock", "ok", "the database's clock agrees with this machine's")


async def _bindings(calls: Calls) -> AsyncIterator[Finding]:
    rows = await calls.rows("list_host_bindings")
    unbound = [f"{row['object']} ({row['needed_for']})" for row in rows if not row["bound"]]
    text = f"{len(rows) - len(unbound)} of {len(rows)} host bindings are bound"
    # Not wrong: an application binds what it uses. A wrong binding is drift of the schema.
    yield Finding("host", "ok", text if not unbound else f"{text}, without {', '.join(unbound)}")


async def _workers(calls: Calls) -> AsyncIterator[Finding]:
    alive = [worker for worker in await calls.rows("list_workers") if watch.is_alive(worker)]
    if alive:
        yield Finding("workers", "ok", f"{len(alive)} alive: {', '.join(worker['name'] for worker in alive)}")
    else:
        yield Finding("workers", "warning", "no worker is alive, jobs wait", "start one: procjobs worker")


async def _queues(calls: Calls) -> AsyncIterator[Finding]:
    queues = await calls.rows("list_queues")
    for queue in queues:
        name = queue["name"]
        if queue["paused_at"] is not None:
            yield Finding("queues", "warning", f"{name} is paused", f"go on with: procjobs queues resume {name}")
        elif (queue["oldest_wait"] or timedelta(0)) > LONG_WAIT:
            minutes = queue["oldest_wait"].total_seconds() / 60
            yield Finding(
                "queues",
                "warning",
                f"the oldest job of {name} waits for {minutes:.0f} min",
                f"see: procjobs jobs list --queue {name} --status todo, then procjobs jobs show ID",
            )
    waiting = sum(queue["waiting"] for queue in queues)
    yield Finding("queues", "ok", f"{len(queues)} queues, {waiting} jobs waiting")


async def _mail(settings: Settings) -> Finding:
    if settings.smtp_host is None:
        return Finding("mail", "warning", "no mail server is configured", "set PROCJOBS_SMTP_HOST to send mail")
    from procjobs.mail import Mailer

    mailer = Mailer.of(settings)
    try:
        answered = await mailer.greet()
    finally:
        await mailer.close()
    if answered is None:
        return Finding("mail", "ok", f"the mail server {mailer.server} answers")
    return Finding("mail", "wrong", f"the mail server {mailer.server}: {answered}", "check the smtp_ settings")


def _first_line(error: ProcjobsError) -> str:
    return error.message.strip().splitlines()[0]
