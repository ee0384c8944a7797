"""Periodic tasks and schedules under a clock that tests set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import procjobs
from procjobs.db import Link
from procjobs.engine.schedules import Declarations
from procjobs.engine.ticker import Ticker


class Clockwork:
    """An app, and what its workers do about its schedules at a time of the database's clock."""

    def __init__(self, app: procjobs.App) -> None:
        self.app = app
        # One connection, so that every statement goes by the clock set in it.
        self.link = Link(app.target, "clockwork")
        self._worker: Ticker | None = None

    @classmethod
    @asynccontextmanager
    async def on(cls, dsn: str) -> AsyncIterator[Clockwork]:
        app = procjobs.App(dsn)
        async with app.open_async():
            made = cls(app)
            try:
                yield made
            finally:
                await made.link.close()

    def restart(self, **defaults: float) -> None:
        """Another worker takes over; it remembers nothing."""
        self.app.periodic_defaults.update(defaults)
        self._worker = None

    async def at(self, when: datetime | str) -> float:
        """The worker looks at this time; the seconds until it would look again."""
        await self.link.fetch("select set_config('procjobs.now', %s, false)", (str(when),))
        if self._worker is None:
            self._worker = Ticker(self.link, "clockwork", asyncio.Event())
            await Declarations(self.app).tell(self.link, 0)
        return await self._worker.tick()
