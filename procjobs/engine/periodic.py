"""Procrastinate's `@app.periodic` tasks: each slot once over the fleet, and one bad cron harms nobody."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from procrastinate import exceptions
from procrastinate.periodic import PeriodicRegistry, PeriodicTask

__all__ = ["Periodic"]

logger = logging.getLogger("procjobs.worker")

_LONGEST_SLEEP = 60.0


class Periodic:
    """Defers the slots that are due, in UTC as Procrastinate does.

    max_delay: seconds; slots missed by more than this while no worker ran are left out.
    last_slot: looks up the last slot of (task name, periodic id) that anybody deferred.
    """

    def __init__(
        self,
        registry: PeriodicRegistry,
        last_slot: Callable[[str, str], Awaitable[int | None]],
        *,
        max_delay: float = 600.0,
        **_: Any,
    ) -> None:
        self._tasks = dict(registry.periodic_tasks)
        self._last_slot = last_slot
        self._max_delay = max_delay
        self._deferred: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        """Defer due slots until cancelled; returns at once when there is no periodic task."""
        while self._tasks:
            now = time.time()
            wait = _LONGEST_SLEEP
            for key, periodic in list(self._tasks.items()):
                try:
                    for slot in await self._due(key, periodic, now):
                        await self._defer(key, periodic, slot)
                    wait = min(wait, periodic.croniter.get_next(ret_type=float, start_time=now) - now)
                except exceptions.ConnectorException:
                    raise
                except Exception:
                    logger.exception(
                        "periodic task %s (cron %r) never fires and is left out",
                        periodic.task.name,
                        periodic.cron,
                        extra={"action": "periodic_task_invalid", "task": periodic.task.name},
                    )
                    del self._tasks[key]
            await asyncio.sleep(max(0.0, now + wait - time.time()) + 0.01)

    async def _due(self, key: tuple[str, str], periodic: PeriodicTask[Any, Any, Any], now: float) -> list[int]:
        last = self._deferred.get(key)
        if last is None:
            last = await self._last_slot(periodic.task.name, periodic.periodic_id)
        previous = round(periodic.croniter.get_prev(ret_type=float, start_time=now))
        if last is None:
            return [previous] if now - previous <= self._max_delay else []
        slots: list[int] = []
        while previous > last and now - previous <= self._max_delay:
            slots.append(previous)
            previous = round(periodic.croniter.get_prev(ret_type=float, start_time=previous))
        return slots[::-1]

    async def _defer(self, key: tuple[str, str], periodic: PeriodicTask[Any, Any, Any], slot: int) -> None:
        options: Any = dict(periodic.configure_kwargs)
        options["task_kwargs"] = {**(options.get("task_kwargs") or {}), "timestamp": slot}
        deferrer = periodic.task.configure(**options)
        try:
            job_id = await deferrer.job_manager.defer_periodic_job(
                job=deferrer.job, periodic_id=periodic.periodic_id, defer_timestamp=slot
            )
        except exceptions.AlreadyEnqueued:
            job_id = None
        self._deferred[key] = slot
        if job_id is not None:
            logger.info(
                "periodic task %s deferred as job %s",
                periodic.task.name,
                job_id,
                extra={"action": "periodic_task_deferred", "task": periodic.task.name, "job_id": job_id},
            )
