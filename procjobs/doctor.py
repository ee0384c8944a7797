"""Looking for what is wrong, from the outside in: server, schema, host bindings, workers, queues, mail, channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from procjobs import migrate as migrations
from procjobs import pg_cron, watch
from procjobs.channels import METHODS, Channels, channel_state
from procjobs.db import Calls, Connection, Link, Target, Transaction, connect
from procjobs.errors import ProcjobsError
from procjobs.settings import Settings

__all__ = ["Finding", "examine"]

#: Seconds within which a NOTIFY must be heard.
HEARING = 3.0
#: Schedules are computed by the database's clock; people read this machine's.
SKEW = timedelta(seconds=5)

Verdict = Literal["ok", "warning", "wrong"]
_VERDICTS: dict[str, Verdict] = {"wrong": "wrong", "warning": "warning", "note": "ok"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `mend` says what to do where something is wrong."""

    subject: str
    verdict: Verdict
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
        found = [_server(connection), *await _schema(settings, dsn)]
        if any(finding.verdict == "wrong" for finding in found):
            return found
        for look in (_clock, _bindings, _workers, _queues, _inside):
            found += await _guarded(look, Transaction(connection))
        found += await _guarded(partial(_pg_cron, dsn), Transaction(connection))
        found.append(await _hearing(connection, settings.listen_dsn or dsn))
    finally:
        await connection.close()
    found.append(await _mail(settings) if mailbox is None else Finding("mail", "ok", f"all mail goes to {mailbox}"))
    return [*found, *_channels(settings)]


def _server(connection: Connection) -> Finding:
    major = connection.info.server_version // 10000
    text = f"PostgreSQL {major}, database {connection.info.dbname}, as {connection.info.user}"
    if major < migrations.OLDEST_SERVER:
        return Finding("server", "wrong", text, f"upgrade to PostgreSQL {migrations.OLDEST_SERVER} or newer")
    return Finding("server", "ok", text)


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
        name = getattr(look, "__name__", "pg_cron")
        return [Finding(name.strip("_"), "wrong", _first_line(error), error.hint)]


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
    if alive:  # where none is, procjobs.doctor() says so
        yield Finding("workers", "ok", f"{len(alive)} alive: {', '.join(worker['name'] for worker in alive)}")


async def _queues(calls: Calls) -> AsyncIterator[Finding]:
    queues = await calls.rows("list_queues")
    waiting = sum(queue["waiting"] for queue in queues)
    paused = ", ".join(queue["name"] for queue in queues if queue["paused_at"] is not None)
    yield Finding("queues", "ok", f"{len(queues)} queues, {waiting} jobs waiting{paused and f', paused: {paused}'}")


async def _inside(calls: Calls) -> AsyncIterator[Finding]:
    """What the database says of itself: procjobs.doctor()."""
    for row in await calls.rows("doctor"):
        if row["subject"] != "pg_cron":
            yield _found(row)
    verdicts = [row["line"] for row in await calls.rows("explain_claim") if row["statement"] == "verdict"]
    if all(verdict.startswith("ok") for verdict in verdicts):
        yield Finding("claim", "ok", f"all {len(verdicts)} hot statements go by their indexes")


async def _pg_cron(dsn: str, calls: Calls) -> AsyncIterator[Finding]:
    """In whatever database it is; procjobs.doctor() can look only into its own."""
    try:
        facts = await pg_cron.facts(dsn)
    except ProcjobsError:  # that database does not let us in
        facts = None
    rows = await calls.rows("doctor_pg_cron", p_facts=facts)
    for row in rows:
        yield _found(row)
    if facts is not None and facts["jobs"] and not rows:
        starts = [job["last"]["start"] for job in facts["jobs"].values() if job["last"] and job["last"]["start"]]
        last = f"last at {max(starts)}" if starts else "which has run nothing yet"
        yield Finding("pg_cron", "ok", f"pg_cron {facts['version']} has {len(facts['jobs'])} jobs of ours, {last}")


def _found(row: Mapping[str, Any]) -> Finding:
    return Finding(row["subject"], _VERDICTS[row["severity"]], row["finding"], row["mend"])


async def _hearing(connection: Connection, listen_dsn: str) -> Finding:
    """Whether a NOTIFY sent where jobs are enqueued is heard where workers listen; a pooler may swallow it."""
    channel = f"procjobs_doctor_{uuid4().hex}"
    listener = Link(Target(listen_dsn, {"connect_timeout": 5}), "procjobs doctor")
    try:
        async with asyncio.timeout(HEARING):
            async with aclosing(listener.listen([channel])) as heard:
                await anext(heard)
                await connection.execute("select pg_notify(%s, '')", [channel])
                await anext(heard)
    except (TimeoutError, ProcjobsError) as error:
        why = _first_line(error) if isinstance(error, ProcjobsError) else "a NOTIFY was not heard"
        return Finding(
            "wake-up",
            "warning",
            f"{why}: workers find new jobs only when they look, every poll_interval",
            "behind a pooler, give the workers a direct connection: PROCJOBS_LISTEN_DSN",
        )
    finally:
        await listener.close()
    return Finding("wake-up", "ok", "workers hear of new jobs at once")


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


def _channels(settings: Settings) -> list[Finding]:
    """What other channels than mail lack: settings, packages, or nothing."""
    channels = Channels(settings)
    found, ready, off = [], [], []
    for state in (channel_state(settings, method) for method in METHODS):
        if state.state == "half":
            found.append(Finding("channels", "wrong", f"{state.method} is set up by halves", state.mend))
        elif state.state == "off":
            off.append(state.method)
        elif sentence := channels.missing(state.method):
            found.append(Finding("channels", "wrong", *sentence.split(": ", 1)))
        else:
            ready.append(state.method)
    told = f"set up: {', '.join(ready) or 'none'}"
    return [*found, Finding("channels", "ok", f"{told}; not: {', '.join(off)}" if off else told)]


def _first_line(error: ProcjobsError) -> str:
    return error.message.strip().splitlines()[0]
