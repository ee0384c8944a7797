"""Bring a database to the schema this release of procjobs wants, and say where it differs.

Tables change in Alembic's revisions (`migrations/`). Functions, triggers, views and grants live in `sql/` as their one
current source and are applied again, all of them, whenever they or the host's own `host.sql` changed, or when the
database no longer has them as they were left. Everything happens in one transaction (adopting an older Procrastinate
takes one before it): it succeeds, or nothing was changed.

The usual case, nothing to do, reads the catalogs once: no lock, no SQLAlchemy.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from procjobs import adoption
from procjobs.errors import MigrationError, ServerError, translate
from procjobs.schema import ROLES, Log, Plan, Raw, Resources, State, objects, read_state, resources, silent

__all__ = ["Report", "Resources", "apply", "check", "downgrade", "migrate", "resources", "restore_upstream"]

OLDEST_SERVER = 14
#: One migration at a time in a database; any constant that nobody else uses will do.
ADVISORY_LOCK = 7_015_210_014
#: Seconds for which others may be in the way, a transaction that reads our tables or another migration's.
PATIENCE = 60.0
#: Less than PostgreSQL's deadlock_timeout: workers that hold one of our tables and want another get them in time. After
#: a quarter of the patience more: somebody is in the way each time, and PostgreSQL ends whoever waits in a circle.
_TAKE_WITHIN, _TAKE_AT_LAST = "400ms", "3s"
#: All at once, before anything is changed: what would be taken one by one is held by workers in any order. Not views:
#: LOCK goes on to all that they read, the server's own and the application's.
_TAKE_ALL = """
do $$
begin
  execute (
    select format('lock table %s in access exclusive mode',
      string_agg(c.oid::regclass::text, ', ' order by c.relkind desc, c.oid))
    from pg_class c
    where (c.relnamespace = 'procjobs'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition)
      or c.oid = to_regclass({jobs})
  );
end
$$
"""
#: Alembic keeps what it works on in globals of its modules: one thread at a time.
_ALEMBIC = threading.Lock()


@dataclass(frozen=True, slots=True)
class Report:
    """What migrate did.

    changed:         False when everything was as it should be.
    revision:        the revision the tables are at, e.g. "0003".
    upstream_schema: the schema of Procrastinate's tables.
    adopted:         files of Procrastinate's own that an existing installation lacked; None if there was none before.
    applied:         the files applied, in order.
    notes:           what a person should know, e.g. roles that could not be created.
    """

    changed: bool
    revision: str
    upstream_schema: str
    adopted: tuple[str, ...] | None = None
    applied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def migrate(
    dsn: str, *, host_sql: Path | None = None, upstream_schema: str | None = None, log: Log | None = None
) -> Report:
    """Bring the database to this release's schema; safe to call at every start, by any number of processes at once.

    host_sql:        the application's own bindings; default: the demo's.
    upstream_schema: where Procrastinate is, or shall be; default: where it is found, else public.
    log:             told each step in a sentence.

    Raises MigrationError (nothing was changed), ServerError (too old), DatabaseUnavailable.
    """
    plan = Plan(resources(), _host_file(host_sql), upstream_schema, log or silent)
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        try:
            with _connection(dsn) as connection:
                state = read_state(connection)
                if state.settled(plan):
                    return _unchanged(state)
            return _change(dsn, plan, _TAKE_WITHIN if waited < PATIENCE / 4 else _TAKE_AT_LAST)
        except (pg.DeadlockDetected, pg.LockNotAvailable, pg.SerializationFailure) as error:
            # Workers and other databases' migrations may be in the way; they are short.
            if waited > PATIENCE:
                raise MigrationError(
                    f"the tables stayed locked by others: {error.diag.message_primary}",
                    hint="look for long transactions in pg_stat_activity, then migrate again",
                ) from error
            plan.log(f"{error.diag.message_primary}; trying again")
            time.sleep(random.uniform(0.1, 0.7))
        except psycopg.Error as error:
            raise translate(error) from error


def check(dsn: str, *, host_sql: Path | None = None) -> list[str]:
    """Every way in which the database differs from what migrate would leave, one sentence each; empty when none.

    Raises MigrationError when a later procjobs migrated it, ServerError (too old), DatabaseUnavailable.
    """
    plan = Plan(resources(), _host_file(host_sql), None, silent)
    try:
        with _connection(dsn) as connection:
            state = read_state(connection)
    except psycopg.Error as error:
        raise translate(error) from error
    state.refuse_newer(plan)
    return state.problems(plan)


def downgrade(dsn: str, revision: str = "base", *, log: Log | None = None) -> None:
    """Go back to a revision; `base` leaves Procrastinate's own schema, with every job, and nothing of ours.

    Functions, triggers and views are dropped; migrate brings them back. For tests and for leaving procjobs.
    """
    plan = Plan(resources(), None, None, log or silent)
    try:
        with _alembic(dsn, plan) as (connection, config):
            state = read_state(connection)
            if state.revision is None:
                return
            config.attributes["schema"] = state.upstream_schema
            plan.run(connection, plan.resources.migrations / "drop_code.sql", state.upstream_schema)
            from alembic import command

            with _ALEMBIC:
                command.downgrade(config, revision)
            if revision == "base":
                connection.execute("drop schema procjobs cascade")
                connection.execute("drop schema if exists procjobs_demo cascade")
            else:
                connection.execute("update procjobs.schema_state set checksum = null")
    except psycopg.Error as error:
        raise translate(error) from error


def apply(name: str, *, upstream_first: bool = False) -> None:
    """For revisions: run the file of that name beside them, against Procrastinate's schema wherever it is.

    upstream_first: install Procrastinate's own schema before, unless it is there.
    """
    connection, attributes = _revision()
    plan, schema = attributes["plan"], attributes["schema"]
    if upstream_first and not attributes["adopted"]:
        adoption.install(connection, schema)
    plan.run(connection, plan.resources.migrations / "versions" / name, schema)


def restore_upstream() -> None:
    """For revisions: the indexes and triggers that 0002 took away, from Procrastinate's own file."""
    connection, attributes = _revision()
    adoption.restore(connection, attributes["schema"])


def _revision() -> tuple[Raw, Any]:
    """The connection of the running revision, and what `_alembic` told it."""
    from alembic import op

    bind = op.get_bind()
    config = op.get_context().config
    assert bind is not None and config is not None
    return cast(Raw, bind.connection.driver_connection), config.attributes


def _unchanged(state: State) -> Report:
    missing = [role for role in ROLES if f"role {role}" not in state.found]
    notes = (f"missing roles: {', '.join(missing)}; create them as a superuser, then migrate",) if missing else ()
    return Report(False, state.revision or "", state.upstream_schema, notes=notes)


def _host_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise MigrationError(f"there is no file {path}", hint="procjobs init writes one")
    if path is not None and not os.access(path, os.R_OK):
        raise MigrationError(f"{path} may not be read by this user", hint=f"chmod a+r {path}")
    return path


@contextmanager
def _connection(dsn: str) -> Iterator[Raw]:
    """A connection in a transaction that reads the catalogs alike everywhere. Raises ServerError when too old."""
    with psycopg.connect(dsn, application_name="procjobs migrate", prepare_threshold=None) as connection:
        _prepare(connection)
        yield connection


@contextmanager
def _rights_told(connection: Raw, plan: Plan) -> Iterator[None]:
    """Missing rights are told with what to grant. Raises MigrationError."""
    try:
        yield
    except pg.InsufficientPrivilege as error:
        raise MigrationError(str(error.diag.message_primary), hint=plan.rights(connection)) from error


def _prepare(connection: Raw) -> None:
    server = connection.info.server_version
    if server < OLDEST_SERVER * 10000:
        raise ServerError(
            f"the server is PostgreSQL {server // 10000}, and procjobs needs {OLDEST_SERVER} or newer",
            hint="upgrade the server, or leave DATABASE_URL unset to use the embedded one",
        )
    connection.execute("set local search_path to pg_catalog, pg_temp")
    connection.execute("set local client_min_messages to warning")
    connection.execute("set local lock_timeout to '15s'")


def _alone(connection: Raw) -> None:
    """Wait until no other migration runs in this database. A lock of the transaction holds behind a pooler too."""
    connection.execute("set local lock_timeout to 0")
    connection.execute("select pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
    connection.execute("set local lock_timeout to '15s'")


@contextmanager
def _alembic(dsn: str, plan: Plan) -> Iterator[tuple[Raw, Any]]:
    """One transaction, alone in the database, shared by Alembic and psycopg."""
    from alembic.config import Config
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    def connect() -> Raw:
        return psycopg.connect(dsn, application_name="procjobs migrate", prepare_threshold=None)

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.connect() as wrapped, wrapped.begin():
            connection = cast(Raw, wrapped.connection.driver_connection)
            _prepare(connection)
            _alone(connection)
            connection.execute("set local check_function_bodies to off")
            config = Config()
            config.set_main_option("script_location", str(plan.resources.migrations).replace("%", "%%"))
            config.set_main_option("path_separator", "os")
            config.attributes.update(connection=wrapped, plan=plan, adopted=True, schema="public")
            with _rights_told(connection, plan):
                yield connection, config
    except DBAPIError as error:
        raise error.orig or error from error
    finally:
        engine.dispose()


def _change(dsn: str, plan: Plan, take_within: str) -> Report:
    """Everything that migrate does when there is something to do."""
    caught_up = _adopt(dsn, plan)
    notes: list[str] = []
    with _alembic(dsn, plan) as (connection, config):
        state = read_state(connection)
        if state.settled(plan):
            return _unchanged(state)  # another process was faster
        connection.add_notice_handler(lambda said: _note(said, notes))
        schema = _place(connection, state, plan)
        adopted = caught_up is not None
        config.attributes.update(schema=schema, adopted=adopted)
        grants = _take_all(connection, schema, take_within) if state.revision is not None else []
        _upgrade_tables(connection, config, state, plan)
        applied, strangers = _apply_code(connection, state, schema, plan)
        _grant_again(connection, grants)
        found = {name: mark for name, mark in objects(connection, schema).items() if name not in strangers}
        connection.execute(
            "insert into procjobs.schema_state as s"
            " (upstream_schema, adopted, checksum, objects, server_version, applied_at, applied_by)"
            " values (%s, %s, %s, %s, %s, statement_timestamp(), session_user)"
            " on conflict (one) do update set checksum = excluded.checksum, objects = excluded.objects,"
            " server_version = excluded.server_version, applied_at = excluded.applied_at,"
            " applied_by = excluded.applied_by",
            [
                schema,
                adopted,
                plan.checksum(schema),
                Jsonb(found),
                connection.info.server_version,
            ],
        )
    first = state.revision is None
    return Report(
        True,
        plan.resources.head,
        schema,
        tuple(caught_up or ()) if adopted and first else None,
        tuple(applied),
        tuple(notes),
    )


def _take_all(connection: Raw, schema: str, within: str) -> list[tuple[str, str, str, bool]]:
    """Take our tables and the job table out of everybody's hands, each `within` a time, or fail to try again.

    Views go, and before: who reads one has it before its tables. Returns what others were granted on them.
    """
    connection.execute(f"set local lock_timeout to '{within}'")
    grants = _grants_of_others(connection)
    _drop_views(connection)
    jobs = sql.Literal(sql.Identifier(schema, "procrastinate_jobs").as_string())
    connection.execute(sql.SQL(_TAKE_ALL).format(jobs=jobs))
    connection.execute("set local lock_timeout to '15s'")
    return grants


def _note(said: psycopg.errors.Diagnostic, notes: list[str]) -> None:
    note = "; ".join(part for part in (said.message_primary, said.message_hint) if part)
    if note not in notes:  # owners.sql is applied twice
        notes.append(note)


def _adopt(dsn: str, plan: Plan) -> list[str] | None:
    """Bring an existing Procrastinate to the present; None if there is none. A transaction of its own, since a value
    added to an enum can only be used after it."""
    with _connection(dsn) as connection, _rights_told(connection, plan):
        _alone(connection)
        state = read_state(connection)
        if state.revision is not None:
            return [] if adoption.find_schema(connection, state.upstream_schema) else None
        schema = adoption.find_schema(connection, plan.upstream_schema)
        if schema is None:
            return None
        plan.log(f"adopting the Procrastinate in schema {schema}")
        return adoption.catch_up(connection, schema)


def _place(connection: Raw, state: State, plan: Plan) -> str:
    """The schema of Procrastinate's tables. Raises MigrationError when another one was asked for than is there."""
    if state.revision is None:
        return adoption.find_schema(connection, plan.upstream_schema) or plan.upstream_schema or "public"
    if plan.upstream_schema not in (None, state.upstream_schema):
        raise MigrationError(
            f"Procrastinate's tables are in schema {state.upstream_schema}, not {plan.upstream_schema}",
            hint="leave --schema out",
        )
    return state.upstream_schema


def _upgrade_tables(connection: Raw, config: Any, state: State, plan: Plan) -> None:
    head = plan.resources.head
    if state.revision == head:
        return
    state.refuse_newer(plan)
    plan.log(f"tables: {state.revision or 'none'} -> {head}")
    connection.execute("create schema if not exists procjobs")
    from alembic import command

    with _ALEMBIC:
        command.upgrade(config, "head")


def _apply_code(connection: Raw, state: State, schema: str, plan: Plan) -> tuple[list[str], set[str]]:
    """Apply every file of sql/. Returns their names, and the functions in our schema that are not ours."""
    files = plan.files()
    plan.log(f"functions, triggers and views: {len(files)} files")
    functions = plan.resources.sql / "functions"
    strangers: set[str] = set()
    late = False
    for path in files:
        if path.parent not in (functions, functions / "packs") and path.name != "roles.sql" and not late:
            late = True
            strangers = _drop_stale(connection, state)
        if path == plan.host:
            # The application's own file may name its tables as the application does.
            connection.execute("set local search_path to default")
        plan.run(connection, path, schema)
        connection.execute("set local search_path to pg_catalog, pg_temp")
    return [plan.resources.name(path) for path in files], strangers


def _drop_views(connection: Raw) -> None:
    views = connection.execute(
        "select relname from pg_class where relnamespace = 'procjobs'::regnamespace and relkind = 'v'"
    ).fetchall()
    if not views:
        return
    names = sql.SQL(", ").join(sql.Identifier("procjobs", row[0]) for row in views)
    try:
        connection.execute(sql.SQL("drop view {}").format(names))
    except pg.DependentObjectsStillExist as error:
        raise MigrationError(
            f"something of your own depends on a view of procjobs: {error.diag.message_detail}",
            hint="drop it, migrate, and create it again",
        ) from error


def _drop_stale(connection: Raw, state: State) -> set[str]:
    """Routines that an earlier migrate made and this one did not make again go. Returns those that nobody of us made.

    What this transaction wrote is told from the rest by the age of its row.
    """
    untouched = connection.execute(
        "select 'function ' || format('%I.%I(%s)', 'procjobs', proname, pg_get_function_identity_arguments(oid)),"
        " oid::regprocedure::text from pg_proc"
        " where pronamespace = 'procjobs'::regnamespace and prokind in ('f', 'p') and proname not like 'host\\_%'"
        " and age(xmin) > age(pg_current_xact_id()::xid)"
    ).fetchall()
    for name, signature in untouched:
        if name in state.wanted:
            connection.execute(f"drop routine {signature}".encode())
    return {name for name, _ in untouched if name not in state.wanted}


def _grants_of_others(connection: Raw) -> list[tuple[str, str, str, bool]]:
    """What a company granted to its own roles on our views, which are about to be made anew."""
    return connection.execute(
        "select c.relname, a.grantee::regrole::text, a.privilege_type, a.is_grantable"
        " from pg_class c cross join aclexplode(c.relacl) as a"
        " where c.relnamespace = 'procjobs'::regnamespace and c.relkind = 'v'"
        " and a.grantee not in (0, c.relowner) and a.grantee::regrole::text not like 'procjobs\\_%'"
    ).fetchall()


def _grant_again(connection: Raw, grants: list[tuple[str, str, str, bool]]) -> None:
    for view, role, privilege, grantable in grants:
        there = connection.execute(
            "select to_regclass(format('procjobs.%%I', %s::text)) is not null", [view]
        ).fetchone()
        if there and there[0]:
            option = " with grant option" if grantable else ""
            name = sql.Identifier("procjobs", view).as_string(connection)
            connection.execute(f"grant {privilege} on {name} to {role}{option}".encode())
