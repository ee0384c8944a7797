"""The only place that meets psycopg: connections, calls of SQL functions, and psycopg's errors.

A call names a function of the schema `procjobs` and its arguments; the SQL is built here and nowhere else:

    await db.value("pause_queue", queue="mail", reason="provider down")
    await db.rows("list_jobs", status="failed", max_rows=50)
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow, dict_row, tuple_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from procjobs.errors import DatabaseError, DatabaseUnavailable, SettingsError, translate

__all__ = [
    "Connection",
    "Database",
    "Link",
    "Session",
    "SyncLink",
    "Target",
    "borrow",
    "call_query",
    "connect",
    "connect_sync",
    "dsn_in",
    "heed_pooler",
    "heed_pooler_sync",
]

Row = dict[str, Any]
T = TypeVar("T")
C = TypeVar("C", bound="psycopg.AsyncConnection[Any]")
Connection = psycopg.AsyncConnection[Row]

_PROCESS = "select pg_catalog.pg_backend_pid()"
_QUERY_CANCELED = "57014"
_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def call_query(function: str, arguments: Sequence[str], *, prefix: str = "") -> LiteralString:
    """`select * from procjobs.function(a => %(a)s, ...)`; names are checked, values stay parameters."""
    for name in (function, *arguments):
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name of a function or argument: {name!r}")
    listed = ", ".join(f'"{name}" => %({name})s' for name in arguments)
    return f"{prefix}select * from procjobs.{function}({listed})"


def _adapt(value: Any) -> Any:
    return Jsonb(value) if isinstance(value, dict) else value


def dsn_in(dsn: str, dbname: str) -> str:
    """The same server and login, another database."""
    return make_conninfo(dsn, dbname=dbname)


class Calls:
    """Calls of SQL functions over something that yields a connection."""

    def connection(self) -> Any:
        """An async context manager that yields a connection with rows as dicts."""
        raise NotImplementedError

    async def rows(self, function: str, *, as_: type[T] | None = None, **args: Any) -> list[Any]:
        """All rows of `procjobs.function(...)`, as dicts or as instances of `as_` (fields by column name)."""
        query = call_query(function, list(args))
        try:
            async with self.connection() as connection:
                cursor = await connection.execute(query, {k: _adapt(v) for k, v in args.items()})
                found = await cursor.fetchall()
        except PoolTimeout as error:
            raise DatabaseUnavailable(str(error)) from error
        except psycopg.Error as error:
            if _outdated(error):
                await connection.close()  # the pool opens another
            raise translate(error) from error
        return found if as_ is None else [as_(**row) for row in found]

    async def row(self, function: str, *, as_: type[T] | None = None, **args: Any) -> Any:
        """The first row of `procjobs.function(...)`, or None."""
        found = await self.rows(function, as_=as_, **args)
        return found[0] if found else None

    async def call(self, procedure: str, *, say: Callable[[str], None] | None = None, **args: Any) -> Any:
        """CALL a procedure of `procjobs`, which may commit; the first thing that it gives back, or None.

        say: told each notice, with its hint.
        """
        query = call_query(procedure, list(args)).replace("select * from", "call", 1)

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            if say is not None:
                say("; ".join(part for part in (notice.message_primary, notice.message_hint) if part))

        try:
            async with self.connection() as connection:
                connection.add_notice_handler(hear)
                try:
                    cursor = await connection.execute(query, {k: _adapt(v) for k, v in args.items()})
                    found = await cursor.fetchone() if cursor.description else None
                finally:
                    connection.remove_notice_handler(hear)
        except PoolTimeout as error:
            raise DatabaseUnavailable(str(error)) from error
        except psycopg.Error as error:
            raise translate(error) from error
        return next(iter(found.values())) if found else None

    async def value(self, function: str, **args: Any) -> Any:
        """The first column of the first row of `procjobs.function(...)`, or None."""
        found = await self.rows(function, **args)
        return next(iter(found[0].values())) if found else None


class Transaction(Calls):
    """Calls that commit or roll back together; from `Database.transaction()`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        yield self._connection


class Database(Calls):
    """A small pool of connections; every call is one transaction in one round trip (autocommit)."""

    def __init__(
        self,
        conninfo: str = "",
        *,
        kwargs: dict[str, Any] | None = None,
        min_size: int = 1,
        max_size: int = 4,
        timeout: float = 30.0,
    ) -> None:
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo,
            connection_class=cast(type[Connection], psycopg.AsyncConnection),
            kwargs={"application_name": "procjobs", **(kwargs or {}), "autocommit": True, "row_factory": dict_row},
            min_size=min_size,
            max_size=max_size,
            timeout=timeout,
            configure=heed_pooler,
            open=False,
        )

    async def open(self, *, wait: bool = True) -> None:
        """Open the pool and wait for its first connection. Raises DatabaseUnavailable.

        wait: False returns at once; calls wait for a connection themselves, and the pool goes on trying.
        """
        try:
            await self._pool.open(wait=wait, timeout=self._pool.timeout)
        except PoolTimeout as error:
            await self._pool.close()
            raise DatabaseUnavailable(
                f"PostgreSQL did not answer within {self._pool.timeout:g} s",
                hint="check DATABASE_URL and that the server is running",
            ) from error

    async def close(self) -> None:
        """Close every connection; safe to call twice."""
        await self._pool.close()

    async def __aenter__(self) -> Database:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool, in autocommit."""
        async with borrow(self._pool) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Several calls in one transaction: all take effect, or none."""
        async with self.connection() as connection, connection.transaction():
            yield Transaction(connection)


@asynccontextmanager
async def borrow(pool: AsyncConnectionPool[C]) -> AsyncIterator[C]:
    """A connection of the pool, without asking the server whether it still lives: one that it closed says so.

    When the server was started again, all idle ones are replaced at once. A `check` of the pool's own asks each time,
    and waits for one second, two, four between the dead that it finds.
    """
    async with pool.connection() as connection:
        if not _readable(connection):
            yield connection
            return
    await pool.check()
    async with pool.connection() as connection:
        yield connection


def _readable(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the server said something unasked, as when it closes an idle connection."""
    wire = select.poll()
    wire.register(connection.fileno(), select.POLLIN)
    return bool(wire.poll(0))


def _outdated(error: psycopg.Error) -> bool:
    """Whether what this connection has prepared is older than the functions it calls, as after an upgrade."""
    return error.sqlstate in ("0A000", "26000")


async def heed_pooler(connection: psycopg.AsyncConnection[Any]) -> None:
    """Prepare nothing on a connection that goes through a pooler.

    Behind one that pools transactions the next statement may meet another server connection, which does not know what
    was prepared, or knows something else by that name. A pooler is noticed by the process id that it makes up.
    """
    if connection.prepare_threshold is None:
        return
    try:
        row = await (await connection.cursor(row_factory=tuple_row).execute(_PROCESS)).fetchone()
        if not connection.autocommit:
            await connection.rollback()
    except BaseException:  # cancelled, too: nobody else knows this connection yet
        await connection.close()
        raise
    if row != (connection.info.backend_pid,):
        connection.prepare_threshold = None


def heed_pooler_sync(connection: psycopg.Connection[Any]) -> None:
    """The same for threads."""
    if connection.prepare_threshold is not None:
        row = connection.cursor(row_factory=tuple_row).execute(_PROCESS).fetchone()
        if not connection.autocommit:
            connection.rollback()
        if row != (connection.info.backend_pid,):
            connection.prepare_threshold = None


class _Moments(TimestamptzLoader):
    """Times, and `infinity` and `-infinity`, for which Python has none, as these words."""

    def load(self, data: Buffer) -> datetime:
        written = bytes(data)
        if written in (b"infinity", b"-infinity"):
            return cast(datetime, written.decode())
        return super().load(data)


async def connect(conninfo: str = "", **kwargs: Any) -> Connection:
    """One autocommit connection of its own, rows as dicts; times without end are words. Raises DatabaseUnavailable."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            conninfo, **{"application_name": "procjobs", **kwargs, "autocommit": True, "row_factory": dict_row}
        )
        connection.adapters.register_loader("timestamptz", _Moments)
        await heed_pooler(connection)
    except psycopg.Error as error:
        raise translate(error) from error
    return connection


def connect_sync(conninfo: str = "", **kwargs: Any) -> psycopg.Connection[Row]:
    """The same for threads and for tools that have no event loop."""
    try:
        connection = psycopg.connect(
            conninfo, **{"application_name": "procjobs", **kwargs, "autocommit": True, "row_factory": dict_row}
        )
        heed_pooler_sync(connection)
    except psycopg.Error as error:
        raise translate(error) from error
    return connection


#: A peer that vanished (a failover, a cable) is noticed in seconds instead of the kernel's hours.
_KEEPALIVE = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


@dataclass(frozen=True)
class Target:
    """Where to connect: a connection string or URL, and psycopg's keyword arguments."""

    conninfo: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)

    def arguments(self, application_name: str, row_factory: Any) -> dict[str, Any]:
        """Keyword arguments for a connection of its own, in autocommit."""
        return {
            "application_name": application_name,
            **_KEEPALIVE,
            **self.kwargs,
            "autocommit": True,
            "row_factory": row_factory,
        }


class Link:
    """One connection of its own for one kind of call, opened when needed and again after it broke.

    It never retries by itself: whether a call may be repeated is the caller's knowledge. Calls wait for one another.
    """

    def __init__(self, target: Target, name: str, *, timeout: float = 60.0) -> None:
        self._target = target
        self._name = name
        self._timeout = timeout
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> psycopg.AsyncConnection[TupleRow]:
        """The connection, opened if there is none. Raises DatabaseUnavailable."""
        if self._connection is not None and not self._connection.closed:
            return self._connection
        async with self._opening:
            if self._connection is None or self._connection.closed:
                await self.close()
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> psycopg.AsyncConnection[TupleRow]:
        arguments = self._target.arguments(self._name, tuple_row)
        try:
            connection = await psycopg.AsyncConnection.connect(self._target.conninfo, **arguments)
            await heed_pooler(connection)
        except psycopg.Error as error:
            raise translate(error) from error
        return connection

    async def fetch(self, query: LiteralString, parameters: Sequence[Any] = ()) -> list[TupleRow]:
        """Run one statement in its own transaction; its rows. Raises DatabaseUnavailable, DatabaseError."""
        connection = await self.open()
        try:
            async with asyncio.timeout(self._timeout):
                cursor = await connection.execute(query, parameters)
                return await cursor.fetchall()
        except TimeoutError as error:
            await self.close()
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {self._timeout:g} s") from error
        except psycopg.Error as error:
            failure = translate(error)
            if isinstance(failure, DatabaseUnavailable) or connection.closed or _outdated(error):
                await self.close()
            raise failure from error
        except asyncio.CancelledError:
            # The reply may still be on the wire: the next call must not read it as its own.
            await self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The server process of the open connection; a pooler's are not the server's."""
        return None if self._connection is None else self._connection.info.backend_pid

    async def listen(self, channels: Sequence[str], *, check_every: float = 30.0) -> AsyncGenerator[tuple[str, int]]:
        """LISTEN on channels and yield (payload, pid of the sender) as they come; ("", 0) when listening began.

        Ends with DatabaseUnavailable when the connection is lost; asks the server every `check_every` seconds, since
        a connection whose other end vanished is silent too.
        """
        connection = await self.open()
        try:
            for channel in channels:
                await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            yield "", 0
            while True:
                async for notification in connection.notifies(timeout=check_every):
                    yield notification.payload, notification.pid
                await self.fetch("select 1")
        except psycopg.Error as error:
            raise translate(error) from error
        finally:
            await self.close()

    async def close(self) -> None:
        """Drop the connection; the next call opens another. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                await connection.close()


class Session:
    """One connection for statements that may run for hours: they can be stopped, and say something while they run.

    heard:  called with SQLSTATE and message of each notice that the server sends.
    grace:  seconds that a statement which was asked to stop gets; then the connection is dropped.
    direct: refuse a pooler: what is set in the session must be there for the next statement, and for no other.
    """

    def __init__(
        self,
        target: Target,
        name: str,
        heard: Callable[[str | None, str | None], None] = lambda _state, _message: None,
        *,
        grace: float = 5.0,
        direct: bool = True,
    ) -> None:
        self._link = Link(target, name)
        self._direct = direct
        self._heard = heard
        self._grace = grace
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        #: Value for client_connection_check_interval, where it was reset.
        self.client_check = "0"

    @property
    def lost(self) -> bool:
        """Whether the connection that was open is not any more."""
        return self._connection is not None and self._connection.closed

    async def open(self) -> None:
        """Connect. Raises DatabaseUnavailable; SettingsError when there is a pooler in between."""
        self._connection = await self._link.open()
        if self._direct and await self._link.fetch(_PROCESS) != [(self._connection.info.backend_pid,)]:
            await self.close()
            raise SettingsError(
                "this needs a direct connection to PostgreSQL, and there is a pooler in between",
                hint="set listen_dsn to the server itself",
            )
        self._connection.prepare_threshold = None  # each statement is another
        self._connection.add_notice_handler(lambda said: self._heard(said.sqlstate, said.message_primary))
        # A statement whose client died ends, instead of running beside its successor. Not every system can do that.
        try:
            await self._connection.execute("set client_connection_check_interval = '2s'")
            self.client_check = "2s"
        except psycopg.Error:
            self.client_check = "0"

    async def fetch(self, query: LiteralString, parameters: Sequence[Any] = ()) -> list[TupleRow]:
        """Run a short statement. Raises DatabaseUnavailable, DatabaseError."""
        return await self._link.fetch(query, parameters)

    async def run(self, query: str) -> list[TupleRow]:
        """Run a statement, or several, as long as it takes; the rows of the last.

        When this is cancelled, the server is asked to stop it; if it had ended by then, the rows are returned all the
        same. Raises DatabaseError; CancelledError when it was stopped.
        """
        work = asyncio.ensure_future(self._execute(query))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            try:
                return await self._stop(work)
            except asyncio.CancelledError:
                await self.close()
                raise

    async def _execute(self, query: str) -> list[TupleRow]:
        assert self._connection is not None
        try:
            cursor = await self._connection.execute(query.encode())
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise translate(error) from error

    async def _stop(self, work: asyncio.Future[list[TupleRow]]) -> list[TupleRow]:
        assert self._connection is not None
        with suppress(psycopg.Error, OSError):
            await self._connection.cancel_safe(timeout=self._grace)
        await asyncio.wait([work], timeout=self._grace)
        if not work.done():
            work.cancel()
            raise asyncio.CancelledError
        try:
            return work.result()
        except DatabaseError as error:
            if error.sqlstate == _QUERY_CANCELED:
                raise asyncio.CancelledError from error
            raise

    async def close(self) -> None:
        """Drop the connection. Safe to call twice."""
        await self._link.close()


class SyncLink:
    """The same for a thread.

    patience: seconds a new connection may take, at least 2.
    """

    def __init__(self, target: Target, name: str, *, patience: float = 10.0) -> None:
        self._target = target
        self._name = name
        self._patience = max(2, round(patience))
        self._connection: psycopg.Connection[TupleRow] | None = None

    def fetch(self, query: LiteralString, parameters: Sequence[Any] = ()) -> list[TupleRow]:
        """Run one statement in its own transaction; its rows. Raises DatabaseUnavailable, DatabaseError."""
        try:
            if self._connection is None or self._connection.closed:
                arguments = self._target.arguments(self._name, tuple_row)
                arguments["connect_timeout"] = min(int(arguments["connect_timeout"]), self._patience)
                self._connection = psycopg.connect(self._target.conninfo, **arguments)
                heed_pooler_sync(self._connection)
            return self._connection.execute(query, parameters).fetchall()
        except psycopg.Error as error:
            self.close()
            raise translate(error) from error

    def cut(self) -> None:
        """End a call that hangs in another thread: it fails at once with DatabaseUnavailable."""
        connection = self._connection
        with suppress(psycopg.Error, OSError):
            if connection is not None and not connection.closed:
                with socket.socket(fileno=os.dup(connection.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Drop the connection; the next call opens another. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                connection.close()
