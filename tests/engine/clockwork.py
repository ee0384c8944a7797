"""Periodic tasks under a clock that tests set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import procrastinate

import procjobs
from procjobs.engine.periodic import Periodic


class Clockwork:
    """An app, and what its workers do about its periodic tasks at a time of the database's clock."""

    def __init__(self, app: procjobs.App) -> None:
        self.app = app
        self._worker: Periodic | None = None

    @classmethod
    @asynccontextmanager
    async def on(cls, dsn: str) -> AsyncIterator[Clockwork]:
        # One connection, so that every statement goes by the clock set in it.
        app = procjobs.App(procrastinate.PsycopgConnector(conninfo=dsn, min_size=1, max_size=1))
        async with app.open_async():
            yield cls(app)

    def restart(self, **defaults: float) -> None:
        """Another worker takes over; it remembers nothing."""
        self._worker = Periodic(self.app.periodic_registry, **defaults)

    async def at(self, when: datetime | str) -> float:
        """The worker looks at this time; the seconds until it would look again."""
        if self._worker is None:
            self.restart()
        assert self._worker is not None
        await self.app.connector.execute_query_async(f"set procjobs.now = '{when}'")
        return await self._worker.tick()
