"""Procrastinate's psycopg connector with one round trip for a statement instead of four."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, LiteralString

import psycopg
from procrastinate import PsycopgConnector, SyncPsycopgConnector
from procrastinate.exceptions import NoResult
from procrastinate.psycopg_connector import wrap_exceptions
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from procjobs.db import borrow, heed_pooler, heed_pooler_sync

__all__ = ["Connector", "quicken"]


class Connector(PsycopgConnector):
    """Each query is one statement: no BEGIN and COMMIT around it, and no query before it to see if the server lives."""

    @wrap_exceptions()  # type: ignore[untyped-decorator]
    async def _create_pool(self, pool_args: dict[str, Any]) -> AsyncConnectionPool[Any]:
        return self._pool_factory(**{"configure": heed_pooler, **pool_args}, open=False)

    def get_sync_connector(self) -> Any:
        """The one for programs without an event loop, made on first use."""
        made = super().get_sync_connector()
        if isinstance(made, SyncPsycopgConnector) and "configure" not in made._pool_args:
            made._pool_args = {**made._pool_args, "configure": heed_pooler_sync}
        return made

    @contextlib.asynccontextmanager
    async def _get_cursor(
        self, connection: psycopg.AsyncConnection[Any] | None = None
    ) -> AsyncGenerator[psycopg.AsyncCursor[Any]]:
        if connection is not None:
            async with super()._get_cursor(connection) as cursor:
                yield cursor
            return
        async with borrow(self.pool) as pooled, autocommit(pooled), super()._get_cursor(pooled) as cursor:
            yield cursor

    @wrap_exceptions()  # type: ignore[untyped-decorator]
    async def row(self, query: LiteralString, parameters: Sequence[Any]) -> tuple[Any, ...]:
        """The first row of one statement, by position: what `execute_query_one_async` does in half the time."""
        async with borrow(self.pool) as pooled, autocommit(pooled), pooled.cursor(row_factory=tuple_row) as cursor:
            found = await (await cursor.execute(query, parameters)).fetchone()
        if found is None:
            raise NoResult
        return found


@contextlib.asynccontextmanager
async def autocommit(connection: psycopg.AsyncConnection[Any]) -> AsyncGenerator[None]:
    """Whoever takes the connection from the pool by himself finds it as the pool made it."""
    if connection.autocommit:
        yield
        return
    await connection.set_autocommit(True)
    try:
        yield
    finally:
        if not connection.closed:
            await connection.set_autocommit(False)


def quicken(connector: Any) -> None:
    """Make a connector of Procrastinate's own class one of ours, in place: references to it are already out."""
    if type(connector) is PsycopgConnector:
        connector.__class__ = Connector
