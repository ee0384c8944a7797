"""pg_cron set up, looked at and taken away, wherever in the server it lives.

What is to be done and what is wrong is decided in SQL (`sql/functions/pg_cron.sql`); here are the two connections: to
the database of procjobs, and to the one where pg_cron keeps its jobs, which may be another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from procjobs.db import Calls, Session, Target, Transaction, connect, dsn_in
from procjobs.errors import DatabaseError, PgCronMissing

__all__ = ["Finding", "facts", "install", "remove", "status"]


@dataclass(frozen=True)
class Finding:
    """One thing about pg_cron. severity: ok, info or warning; mend: what to do, if something is."""

    severity: str
    subject: str
    finding: str
    mend: str | None = None


@dataclass(frozen=True)
class _Place:
    """Both sides: `calls` of procjobs' functions, `there` where pg_cron's own functions are; `here` if that is one."""

    calls: Calls
    there: Session
    database: str
    here: bool


async def status(dsn: str, cron_dsn: str | None = None) -> list[Finding]:
    """What pg_cron does for this database, and what is missing. Raises DatabaseError.

    cron_dsn: how to reach the database where pg_cron is; default: as `dsn`.
    """
    async with _places(dsn, cron_dsn) as place:
        if isinstance(place, list):
            return place
        found: list[Finding] = await place.calls.rows("pg_cron_findings", as_=Finding, p_facts=await _facts(place))
        return found


async def facts(dsn: str, cron_dsn: str | None = None) -> dict[str, Any] | None:
    """What pg_cron_findings and doctor_pg_cron judge; None where the server has no pg_cron. Raises DatabaseError."""
    async with _places(dsn, cron_dsn) as place:
        return None if isinstance(place, list) else await _facts(place)


async def install(dsn: str, cron_dsn: str | None = None, *, runners: int = 1) -> list[Finding]:
    """Let pg_cron keep time and run SQL jobs for this database; its status then. May be called again.

    runners: how many SQL jobs run at once. Raises PgCronMissing when something is missing that only people can mend.
    """
    async with _places(dsn, cron_dsn) as place:
        if isinstance(place, list):
            raise _missing(place[0])
        await _extension(place)
        for finding in await status(dsn, cron_dsn):
            if finding.severity == "warning" and finding.subject == "server":
                raise _missing(finding)
        ((version,),) = await place.there.run("select extversion from pg_extension where extname = 'pg_cron'")
        script = await place.calls.rows("pg_cron_script", p_version=version, p_runners=runners, p_here=place.here)
        for row in script:
            await place.there.run(row["pg_cron_script"])
    return await status(dsn, cron_dsn)


async def remove(dsn: str, cron_dsn: str | None = None) -> int:
    """Take our jobs out of pg_cron; how many there were. What runs ends its round."""
    async with _places(dsn, cron_dsn) as place:
        if isinstance(place, list):
            raise _missing(place[0])
        if not (await _ask(place, "rights"))["usage"]:
            return 0
        return len(await place.there.run(await place.calls.value("pg_cron_removal")))


async def _facts(place: _Place) -> dict[str, Any]:
    found = await _ask(place, "rights")
    if found["version"] is not None and found["usage"]:
        found["jobs"] = await _ask(place, "jobs")
    return found


async def _ask(place: _Place, what: str) -> dict[str, Any]:
    ((facts,),) = await place.there.run(await place.calls.value("pg_cron_facts_query", p_what=what))
    found: dict[str, Any] = facts
    return found


async def _extension(place: _Place) -> None:
    """Make the extension where the server has loaded it and nobody did yet."""
    if (await _ask(place, "rights"))["version"] is not None:
        return
    try:
        await place.there.run("create extension pg_cron")
    except DatabaseError as error:
        raise PgCronMissing(
            f"database {place.database} has no extension pg_cron: {error}",
            hint=f"as a superuser in database {place.database}: create extension pg_cron",
        ) from error


@asynccontextmanager
async def _places(dsn: str, cron_dsn: str | None) -> AsyncIterator[_Place | list[Finding]]:
    """Both sides, or why there is no pg_cron to talk to."""
    connection = await connect(dsn, connect_timeout=10)
    there: Session | None = None
    try:
        calls = Transaction(connection)
        absence: list[Finding] = await calls.rows("pg_cron_absence", as_=Finding)
        if absence:
            yield absence
            return
        place = await calls.row("pg_cron_place")
        there = Session(Target(cron_dsn or dsn_in(dsn, place["database"])), "procjobs pg-cron", direct=False)
        await there.open()
        yield _Place(calls, there, place["database"], place["here"])
    finally:
        await connection.close()
        if there is not None:
            await there.close()


def _missing(finding: Finding) -> PgCronMissing:
    return PgCronMissing(finding.finding, hint=finding.mend)
