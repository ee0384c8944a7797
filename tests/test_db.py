"""Connections: what a restart of the server leaves behind is not handed out."""

from __future__ import annotations

import asyncio
from typing import Any

from procjobs.db import Database


async def test_calls_work_at_once_after_the_server_closed_every_connection(db: Database, sql: Any) -> None:
    async def hold() -> None:
        async with db.connection() as connection:
            await connection.execute("select pg_sleep(0.05)")

    await asyncio.gather(*(hold() for _ in range(4)))
    closed = sql(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    assert len(closed) >= 4
    for _ in range(4):
        assert await db.value("clock")
