"""The scheduler: keeps time for a fleet and runs no job.

Every worker does the same beside its jobs, so that workers alone are enough; a scheduler is for a fleet whose workers
come and go, start at zero, or are all busy. Any number may run: one at a time does the upkeep, each slot fires once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from procjobs.db import Link, Target
from procjobs.engine.periodic import Periodic
from procjobs.engine.registration import describe_tasks, register
from procjobs.engine.supervision import enter, sides
from procjobs.engine.upkeep import Upkeep

if TYPE_CHECKING:
    from procrastinate import App

__all__ = ["Scheduler"]

logger = logging.getLogger("procjobs.scheduler")


class Scheduler:
    """Makes due jobs ready, rescues the jobs of dead workers, keeps the history's partitions, defers periodic tasks."""

    def __init__(self, app: App, target: Target) -> None:
        self._app = app
        self._link = Link(target, "procjobs scheduler")
        self._upkeep = Upkeep(self._link)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End `run`; safe to call twice."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep time until stopped, through outages of the database. Raises MigrationError without our schema."""
        periodic = Periodic(self._app.periodic_registry, **self._app.periodic_defaults)
        try:
            await enter(self._enter, self._stopping)
            if not self._stopping.is_set():
                async with sides({"upkeep": self._upkeep.run, "periodic": periodic.run}):
                    await self._stopping.wait()
            logger.info("scheduler stopped", extra={"action": "scheduler_stopped"})
        finally:
            await self._link.close()

    async def _enter(self) -> None:
        await register(self._link, describe_tasks(self._app), "scheduler")
        await self._upkeep.round()
        logger.info(
            "scheduler started, %d periodic tasks",
            len(self._app.periodic_registry.periodic_tasks),
            extra={"action": "scheduler_started"},
        )
