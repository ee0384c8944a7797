"""Procrastinate's own schema: the one its package installs, and how far an existing installation has come.

Nothing of it is copied here. Its files are read from the installed package, and each is known by its SHA-256: a release
of Procrastinate that changes one needs a new revision of procjobs.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from procjobs.errors import MigrationError

__all__ = ["catch_up", "find_schema", "install", "restore"]

Raw = psycopg.Connection[Any]

SCHEMA_SHA256 = "c70ec4b400a60ad9592787653aae5ae77ae41bf801d56b5bd2712751a07f2009"


@dataclass(frozen=True, slots=True)
class _Step:
    """One of Procrastinate's migration files, and a condition that holds once it has been applied."""

    file: str
    sha256: str
    applied: str


def _function(name: str) -> str:
    return f"exists (select from pg_catalog.pg_proc where pronamespace = s.oid and proname = '{name}')"


def _source(name: str, fragment: str) -> str:
    return (
        f"exists (select from pg_catalog.pg_proc where pronamespace = s.oid and proname = '{name}'"
        f" and position('{fragment}' in prosrc) > 0)"
    )


def _relation(name: str) -> str:
    return f"exists (select from pg_catalog.pg_class where relnamespace = s.oid and relname = '{name}')"


#: What Procrastinate 3.0 left at the latest; an older installation must first be brought to 3.0 by its own means.
_BASE = _function("procrastinate_cancel_job_v1")

_STEPS = (
    _Step(
        "03.00.00_50_post_cancel_notification.sql",
        "d16fba7d14d5c699ceb81fd67a450422bd4b8337b1934b4eb00aa5438eddfbdf",
        _function("procrastinate_trigger_function_status_events_update_v1"),
    ),
    _Step(
        "03.01.00_01_pre_add_heartbeat.sql",
        "f07b98da98e470881e629478f85f142b2f28a659f1ab53e0da1dc7fe917834b8",
        _relation("procrastinate_workers"),
    ),
    _Step(
        "03.01.00_50_post_add_heartbeat.sql",
        "562472e1ccfd262792a57dcd771f918dae87b0dc038e3832172b3f1ccce69dc0",
        "not " + _function("procrastinate_fetch_job_v1"),
    ),
    _Step(
        "03.02.00_01_pre_batch_defer_jobs.sql",
        "1f8f957339ff8a455bfd27bdbdbda41daca3b19931a032cd2d9356620af93951",
        _function("procrastinate_defer_jobs_v1"),
    ),
    _Step(
        "03.02.00_50_post_batch_defer_jobs.sql",
        "8fc1d2c94a057eab36cb074f920f8fab17cb23f8ccee708a64ea52804222ac67",
        "not " + _function("procrastinate_defer_job_v1"),
    ),
    _Step(
        "03.03.00_01_pre_priority_lock_fetch_job.sql",
        "70731b65ba99a63962fd1adc6e1c9b3bef6a480a091f3d41d32c50b7ddc31441",
        _source("procrastinate_fetch_job_v2", "other_jobs.priority"),
    ),
    _Step(
        "03.04.00_01_pre_add_retry_failed_job_procedure.sql",
        "6883b7336508620ba856db4a78558158fe15c8e68b2ea05c60b468e73c311255",
        _function("procrastinate_retry_job_v2"),
    ),
    _Step(
        "03.04.00_50_post_add_retry_failed_job_procedure.sql",
        "b7938e0a0885d8d00d3f55647bcf141c3f2acac439070c1287734fcb3d98947b",
        _source("procrastinate_trigger_function_status_events_update_v1", "retried"),
    ),
)


def _read(name: str, sha256: str) -> str:
    """A file of the installed Procrastinate. Raises MigrationError when it is not the file this release knows."""
    content = resources.files("procrastinate").joinpath("sql", *name.split("/")).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise MigrationError(
            f"the installed Procrastinate has another {name} than this procjobs knows (SHA-256 {found[:12]}...)",
            hint="install the release that procjobs asks for: pip install 'procrastinate==3.10.*'",
        )
    return content.decode()


def find_schema(connection: Raw, wanted: str | None = None) -> str | None:
    """The schema that holds an installation of Procrastinate, or None. Raises MigrationError if there are several.

    wanted: look in this schema only.
    """
    found = [
        row[0]
        for row in connection.execute(
            "select n.nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where c.relname = 'procrastinate_jobs' and c.relkind in ('r', 'p')"
            " and (%(wanted)s::text is null or n.nspname = %(wanted)s) order by n.nspname",
            {"wanted": wanted},
        ).fetchall()
    ]
    if len(found) > 1:
        raise MigrationError(
            f"Procrastinate is installed in several schemas: {', '.join(found)}",
            hint="say which one procjobs shall adopt: procjobs migrate --schema NAME",
        )
    return found[0] if found else None


def _within(connection: Raw, schema: str, text: str) -> None:
    """Run one of Procrastinate's files, which name nothing's schema, in the given one."""
    connection.execute(sql.SQL("set local search_path to {}").format(sql.Identifier(schema)))
    connection.execute(text.encode())
    connection.execute("set local search_path to pg_catalog, pg_temp")


def install(connection: Raw, schema: str) -> None:
    """Procrastinate's current schema, new."""
    _within(connection, schema, _read("schema.sql", SCHEMA_SHA256))


def catch_up(connection: Raw, schema: str) -> list[str]:
    """Apply what an existing installation of Procrastinate 3.x lacks; returns the files applied."""
    conditions = ", ".join([_BASE, *(step.applied for step in _STEPS)])
    row = connection.execute(
        f"select {conditions} from pg_catalog.pg_namespace s where s.nspname = %s",
        [schema],
    ).fetchone()
    base, *applied = row or (False,)
    if not base:
        raise MigrationError(
            f"the Procrastinate in schema {schema} is older than 3.0",
            hint="bring it to Procrastinate 3.0 with its own migrations first",
        )
    missing = [step for step, done in zip(_STEPS, applied, strict=True) if not done]
    for step in missing:
        _within(connection, schema, _read(f"migrations/{step.file}", step.sha256))
    return [step.file for step in missing]


def restore(connection: Raw, schema: str) -> None:
    """Make every index and trigger of Procrastinate's schema file anew, whatever procjobs put in its place."""
    text = _read("schema.sql", SCHEMA_SHA256)
    statements = re.findall(r"(?ms)^CREATE (?:UNIQUE )?(INDEX|TRIGGER) (\w+)(.*?;)", text)
    for kind, name, rest in statements:
        table = re.search(r"\bON (\w+)", rest)
        assert table is not None
        place = f" on {table.group(1)}" if kind == "TRIGGER" else ""
        _within(connection, schema, f"drop {kind} if exists {name}{place}")
    _within(connection, schema, "\n".join(re.findall(r"(?ms)^CREATE (?:UNIQUE )?(?:INDEX|TRIGGER) .*?;", text)))
