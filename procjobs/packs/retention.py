"""Retention of the application's tables: what only a program can do.

SQL decides which rows go, and lets them go (`procjobs.work_retention`). Here are the statement that cannot be part of a
function (VACUUM), and the files that no row refers to any more.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from procrastinate import Blueprint, JobContext
from psycopg import sql

from procjobs.db import Database
from procjobs.engine.retry import Retry
from procjobs.errors import DatabaseError, UnknownPolicy, translate
from procjobs.storage import Storage, StorageError, StoredFile, storage_of

__all__ = ["blueprint", "remove_orphans", "vacuum"]

blueprint = Blueprint()
logger = logging.getLogger("procjobs.worker")

_AGAIN = Retry(max_attempts=3, base=60, on=(DatabaseError, StorageError, OSError))


@blueprint.task(name="procjobs.vacuum_table", queue="cleanup", pass_context=True, retry=_AGAIN)
async def vacuum_table(context: JobContext, policy: str) -> int:
    """Vacuums what a run of a table's policy left behind. Returns the number of tables."""
    app: Any = context.app  # a procjobs.App, which stands above the packs
    return await vacuum(await app.database(), policy)


async def vacuum(db: Database, policy: str | None = None) -> int:
    """Vacuum the tables from which a policy deleted much, as the policy's role; returns how many.

    What PostgreSQL passes over (somebody has the table locked, or the role is not its owner) is logged, and left to
    autovacuum or the next run.
    """
    done: dict[str, list[bool]] = {}
    for row in await db.rows("tables_to_vacuum", p_policy=policy):
        done.setdefault(row["policy"], []).append(await _vacuumed(db, row["table_name"], row["run_as"]))
    for name, tables in done.items():
        if all(tables):
            await db.value("note_vacuum", p_policy=name)
    return sum(sum(tables) for tables in done.values())


async def _vacuumed(db: Database, table: str, run_as: str) -> bool:
    """Vacuum one table; False, and said in the log, when PostgreSQL passed over it."""
    said: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            said.append(notice.message_primary or "")

    statement = sql.SQL("vacuum (skip_locked, analyze) {}").format(sql.SQL(table))
    try:
        async with db.connection() as connection:
            connection.add_notice_handler(hear)
            try:
                await connection.execute(sql.SQL("set role {}").format(sql.Identifier(run_as)))
                await connection.execute(statement)
            finally:
                connection.remove_notice_handler(hear)
                await connection.execute("reset role")
    except psycopg.Error as error:
        raise translate(error) from error
    for words in said:
        logger.warning("%s was not vacuumed: %s", table, words, extra={"action": "vacuum"})
    return not said


@blueprint.task(name="procjobs.cleanup_orphaned_uploads", queue="cleanup", pass_context=True, retry=_AGAIN)
async def cleanup_orphaned_uploads(context: JobContext) -> int:
    """Deletes rows of uploads that nobody used, then the files that no row refers to. Returns how many in all."""
    app: Any = context.app
    db: Database = await app.database()
    rows = await _forget_rows(db)
    storage = storage_of(app.settings)
    if storage is None:
        return rows
    return rows + await remove_orphans(db, storage, keep=timedelta(seconds=app.settings.uploads_keep))


async def _forget_rows(db: Database) -> int:
    """The policy of uploads, a batch in each transaction, until nothing is left; nothing where there is none."""
    total = 0
    try:
        while done := await db.value("run_retention", policy="cleanup_orphaned_uploads", max_rows=1000):
            total += done
    except UnknownPolicy:
        return 0
    return total


async def remove_orphans(db: Database, storage: Storage, *, keep: timedelta) -> int:
    """Remove the files of the storage that no row refers to (host_uploads) and that are older than `keep`.

    Rows go before their files, so whatever happens in between leaves a file without a row, which is found here. Young
    files stay: their row may not have been committed yet. Returns how many were removed. Raises HostBindingMissing,
    StorageError.
    """
    before = datetime.now(UTC) - keep
    removed = 0
    pages = storage.pages()
    while (page := await asyncio.to_thread(next, pages, None)) is not None:
        old = {file.key: file for file in page if file.at < before}
        if old:
            orphans = await db.value("unreferenced_files", p_keys=list(old))
            removed += await asyncio.to_thread(_remove, storage, [old[key] for key in orphans])
    return removed


def _remove(storage: Storage, files: list[StoredFile]) -> int:
    return sum(storage.remove(file) for file in files)
