"""The scheduler: keeps time for a fleet and runs no job.

Every worker does the same beside its jobs, so that workers alone are enough; a scheduler is for a fleet whose workers
come and go, start at zero, or are all busy. Any number may run: one at a time does the upkeep, each slot fires once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING

from procjobs.db import Link, Target
from procjobs.engine.presence import Card, Presence
from procjobs.engine.registration import describe_tasks, register
from procjobs.engine.schedules import Declarations
from procjobs.engine.supervision import enter, pause, sides
from procjobs.engine.ticker import Ticker
from procjobs.engine.upkeep import Upkeep

if TYPE_CHECKING:
    from procrastinate import App

__all__ = ["Scheduler"]

logger = logging.getLogger("procjobs.scheduler")


class Scheduler:
    """Makes due jobs ready, rescues the jobs of dead workers, keeps the history's partitions, fires schedules.

    name:            how the ledger and `procjobs.schedulers` name it; default: host and process id.
    heartbeat_every: seconds between two heartbeats; lease: silent for this long it is dead.
    """

    def __init__(
        self,
        app: App,
        target: Target,
        *,
        name: str | None = None,
        heartbeat_every: float = 10.0,
        lease: float = 30.0,
    ) -> None:
        self._app = app
        self._link = Link(target, "procjobs scheduler")
        self._ticking = Link(target, "procjobs tick")
        self._upkeep = Upkeep(self._link)
        self._stopping = asyncio.Event()
        self._lost = asyncio.Event()
        self._card = Card(
            name=name or f"scheduler-{socket.gethostname()}-{os.getpid()}",
            queues=[],
            tasks=[],
            concurrency=0,
            heartbeat_every=heartbeat_every,
            lease=lease,
            keeps_time_only=True,
        )
        self._ticker = Ticker(self._ticking, self._card.name, self._stopping)
        self._declarations = Declarations(app)
        self._presence = Presence(
            target,
            Link(target, "procjobs register"),
            on_abort=lambda _: None,
            on_dead=self._lost.set,
            on_silent=lambda _: None,
        )

    def stop(self) -> None:
        """End `run`; safe to call twice."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep time until stopped, through outages of the database. Raises MigrationError without our schema."""
        try:
            await enter(self._enter, self._stopping)
            named = {
                "upkeep": self._upkeep.run,
                "schedules": self._ticker.run,
                "lease": self._presence.watch,
                "presence": self._come_back,
            }
            async with sides(named):
                await self._stopping.wait()
            await self._presence.leave()  # also when it was stopped while it entered: it may have registered by then
            logger.info("scheduler stopped", extra={"action": "scheduler_stopped"})
        finally:
            await self._presence.close()
            for link in (self._link, self._ticking):
                await link.close()

    async def _enter(self) -> None:
        await register(self._link, describe_tasks(self._app), "scheduler")
        declared = await self._register()
        await self._upkeep.round()
        logger.info(
            "scheduler started, its code declares %d schedules",
            declared,
            extra={"action": "scheduler_started"},
        )

    async def _register(self) -> int:
        self._lost.clear()
        worker_id = await self._presence.register(self._card)
        return await self._declarations.tell(self._link, worker_id)

    async def _come_back(self) -> None:
        """Register again whenever we were declared dead."""
        while not self._stopping.is_set():
            await pause(None, self._lost, self._stopping)
            if self._lost.is_set() and not self._stopping.is_set():
                await self._register()
