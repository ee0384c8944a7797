"""The schema as this release wants it, and as a database has it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from procjobs.errors import DatabaseUnavailable, MigrationError, translate

__all__ = ["ROLES", "Plan", "Raw", "Resources", "State", "objects", "read_state", "resources", "silent"]

Raw = psycopg.Connection[Any]
Log = Callable[[str], None]

#: How our SQL names the schema of Procrastinate's tables, and of our indexes on them.
_UPSTREAM = re.compile(r"\bpublic\.(?=(?:idx_)?procrastinate_|pj_)")

ROLES = ("procjobs_owner", "procjobs_producer", "procjobs_worker", "procjobs_reader", "procjobs_admin")


@dataclass(frozen=True, slots=True)
class Resources:
    """Where the SQL lies: in a source tree, or inside the installed package."""

    sql: Path
    migrations: Path

    @property
    def head(self) -> str:
        """The newest revision; file names begin with it."""
        return max(path.name[:4] for path in (self.migrations / "versions").glob("[0-9]*.py"))

    def files(self) -> list[Path]:
        """The files of `sql/` in the order they are applied; the host's own, schedules and owners come after them."""
        ordered = [self.sql / "roles.sql"]
        ordered += sorted((self.sql / "functions").glob("*.sql"))
        ordered += sorted((self.sql / "functions" / "packs").glob("*.sql"))
        ordered.append(self.sql / "triggers.sql")
        ordered += sorted((self.sql / "views").glob("*.sql"))
        ordered.append(self.sql / "grants.sql")
        return [path for path in ordered if path.exists()]

    def name(self, path: Path) -> str:
        """A file's name for people."""
        for root, label in ((self.sql, "sql"), (self.migrations, "migrations")):
            if path.is_relative_to(root):
                return f"{label}/{path.relative_to(root)}"
        return str(path)


def resources() -> Resources:
    """The SQL of this installation. Raises MigrationError when the package is incomplete."""
    package = Path(__file__).resolve().parent
    for found in (
        Resources(package / "_sql", package / "_migrations"),
        Resources(package.parent / "sql", package.parent / "migrations"),
    ):
        if found.sql.is_dir() and found.migrations.is_dir():
            return found
    raise MigrationError(f"the SQL files of procjobs are missing beside {package}", hint="install procjobs again")


@dataclass(frozen=True, slots=True)
class Plan:
    """What shall be applied, and whom to tell."""

    resources: Resources
    host: Path | None
    upstream_schema: str | None
    log: Log

    def files(self) -> list[Path]:
        host = self.host or self.resources.sql / "host_default.sql"
        owners = self.resources.sql / "owners.sql"
        # Owners before what calls our functions, too: those with their owner's rights cannot call what is new and
        # belongs to whoever migrates.
        calling = [*([host] if host.exists() else []), self.resources.sql / "schedules.sql"]
        return [*self.resources.files(), owners, *calling, owners]

    def checksum(self, upstream_schema: str) -> str:
        mark = hashlib.sha256(upstream_schema.encode())
        for path in [*self.files(), self.resources.sql / "fingerprint.sql"]:
            mark.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
        return mark.hexdigest()

    def run(self, connection: Raw, path: Path, upstream_schema: str) -> None:
        """Run a file; where it fails, say in which line. Raises MigrationError."""
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise MigrationError(
                f"{self.resources.name(path)} is not UTF-8: {error}", hint="save it as UTF-8"
            ) from error
        if upstream_schema != "public":
            quoted = sql.Identifier(upstream_schema).as_string(connection)
            text = _UPSTREAM.sub(lambda _: f"{quoted}.", text)
        began = _transaction(connection)
        try:
            connection.execute(text.encode())
        except (pg.DeadlockDetected, pg.LockNotAvailable, pg.SerializationFailure):
            raise
        except psycopg.Error as error:
            if isinstance(translate(error), DatabaseUnavailable):
                raise
            at = int(error.diag.statement_position or 0)
            line = f":{text.count(chr(10), 0, at) + 1}" if at else ""
            where = f" ({error.diag.context.splitlines()[0]})" if error.diag.context else ""
            hint = error.diag.message_hint or error.diag.message_detail
            if isinstance(error, pg.InsufficientPrivilege):
                hint = hint or self.rights(connection, path, upstream_schema)
            raise MigrationError(
                f"{self.resources.name(path)}{line}: {error.diag.message_primary}{where}", hint=hint
            ) from error
        if _transaction(connection) != began:
            raise MigrationError(
                f"{self.resources.name(path)} ended the transaction in which migrate works",
                hint="take commit, rollback and begin out of the file, then migrate again",
            )

    def rights(self, connection: Raw, path: Path | None = None, upstream_schema: str | None = None) -> str:
        """What whoever migrates must be granted, in the words of SQL."""
        user, database, schema = (
            sql.Identifier(name).as_string(connection)
            for name in (
                connection.info.user,
                connection.info.dbname,
                upstream_schema or self.upstream_schema or "public",
            )
        )
        if path is not None and path == self.host:
            return f"it runs as {user}: grant that user what the file does"
        return (
            f"whoever migrates needs: grant create on database {database} to {user}; grant create on schema {schema}"
            f" to {user}; and owns Procrastinate's tables where they are already"
        )


def _transaction(connection: Raw) -> Any:
    """The number of the transaction that is open."""
    row = connection.execute("select pg_catalog.pg_current_xact_id()").fetchone()
    return row and row[0]


@dataclass(frozen=True, slots=True)
class State:
    """What is in the database: the row that migrate left, and the objects as they are now."""

    server: int
    revision: str | None = None
    upstream_schema: str = "public"
    checksum: str | None = None
    migrated_on: int | None = None
    wanted: dict[str, str] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)

    def settled(self, plan: Plan) -> bool:
        return (
            self.revision == plan.resources.head
            and plan.upstream_schema in (None, self.upstream_schema)
            and self.checksum == plan.checksum(self.upstream_schema)
            and all(self.found.get(name) == fingerprint for name, fingerprint in self.wanted.items())
            and all(name in self.wanted for name in self.found if name.startswith("role "))
        )

    def refuse_newer(self, plan: Plan) -> None:
        """Raises MigrationError when a later procjobs migrated the database."""
        if self.revision is not None and self.revision > plan.resources.head:
            raise MigrationError(
                f"the database is at revision {self.revision}, newer than this procjobs ({plan.resources.head})",
                hint="install the newer procjobs",
            )

    def problems(self, plan: Plan) -> list[str]:
        if self.revision is None:
            return ["procjobs is not installed in this database: run procjobs migrate"]
        found = []
        if self.revision != plan.resources.head:
            found.append(f"the tables are at revision {self.revision}, this procjobs wants {plan.resources.head}")
        if self.checksum != plan.checksum(self.upstream_schema):
            found.append("the functions and views come from another release, or host.sql changed since migrate")
        if self.migrated_on is not None and self.migrated_on // 10000 != self.server // 10000:
            found.append(
                f"the server was upgraded from {self.migrated_on // 10000} to {self.server // 10000} since migrate"
            )
        found += [f"missing: {name}" for name in self.wanted if name not in self.found]
        found += [f"changed: {name}" for name, mark in self.wanted.items() if self.found.get(name, mark) != mark]
        found += [f"not ours: {name}" for name in self.found if name not in self.wanted]
        found += [f"missing: role {role}" for role in ROLES if f"role {role}" not in {**self.found, **self.wanted}]
        return found


def silent(_: str) -> None:
    pass


def read_state(connection: Raw) -> State:
    """The state in one reading of the catalogs."""
    server = connection.info.server_version
    there = connection.execute(
        "select to_regclass('procjobs.schema_state') is not null"
        " and to_regclass('procjobs.alembic_version') is not null"
    ).fetchone()
    if there is None or not there[0]:
        return State(server)
    row = connection.execute(
        "select v.version_num, s.upstream_schema, s.checksum, s.server_version, s.objects"
        " from procjobs.schema_state s, procjobs.alembic_version v"
    ).fetchone()
    if row is None:
        return State(server)
    revision, upstream_schema, checksum, migrated_on, wanted = row
    found = objects(connection, upstream_schema)
    return State(server, revision, upstream_schema, checksum, migrated_on, wanted, found)


def objects(connection: Raw, upstream_schema: str) -> dict[str, str]:
    query = (resources().sql / "fingerprint.sql").read_bytes()
    return dict(connection.execute(query, {"upstream": upstream_schema}).fetchall())
