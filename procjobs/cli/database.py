"""Which database a command talks to, and the connection to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from procjobs.db import Calls
    from procjobs.settings import Settings

__all__ = ["call", "connected", "database_options", "dsn_of", "load_settings", "run"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def database_options(command: F) -> F:
    """Add --dsn and --data to a command."""
    data = click.option("--data", metavar="DIR", help="Data folder of `procjobs up`.  [default: .procjobs]")
    dsn = click.option("--dsn", metavar="DSN", help="The database.  [default: DATABASE_URL, else the running `up`]")
    return dsn(data(command))


def load_settings(**flags: Any) -> Settings:
    """The settings with the flags that were given. Raises SettingsError."""
    from procjobs.settings import Settings

    return Settings.load(**flags)


def dsn_of(settings: Settings) -> str:
    """The configured database, else that of the `up` which runs here. Raises SettingsError."""
    from procjobs.errors import SettingsError
    from procjobs.facts import read_facts

    if settings.dsn:
        return str(settings.dsn)
    facts = read_facts(Path(settings.data))
    if facts is None:
        raise SettingsError(
            f"no database is configured, and no `procjobs up` runs over {settings.data}",
            hint="set DATABASE_URL, pass --dsn, or start `procjobs up`",
        )
    return facts.dsn


@asynccontextmanager
async def connected(dsn: str | None, data: str | None) -> AsyncIterator[Calls]:
    """Calls of SQL functions over one connection."""
    from psycopg.conninfo import conninfo_to_dict

    from procjobs.db import Transaction, connect
    from procjobs.errors import DatabaseUnavailable

    settings = load_settings(dsn=dsn, data=data)
    found = dsn_of(settings)
    timeout = {} if "connect_timeout" in conninfo_to_dict(found) else {"connect_timeout": 10}
    try:
        connection = await connect(found, **timeout)
    except DatabaseUnavailable as error:
        if not settings.dsn:  # up.json outlives an `up` that was killed
            error.hint = f"start `procjobs up` again: the one over {settings.data} does not run any more"
        raise
    try:
        yield Transaction(connection)
    finally:
        await connection.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return asyncio.run(work)


def call(dsn: str | None, data: str | None, function: str, **arguments: Any) -> list[dict[str, Any]]:
    """All rows of one call of `procjobs.function(...)`."""

    async def ask() -> list[dict[str, Any]]:
        async with connected(dsn, data) as calls:
            return await calls.rows(function, **arguments)

    return run(ask())
