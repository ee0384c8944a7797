"""`@app.periodic` tasks: each slot once over the fleet, in the task's own time zone, and one bad cron harms nobody."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from procrastinate import exceptions
from procrastinate.periodic import PeriodicRegistry, PeriodicTask

from procjobs.db import call_query
from procjobs.errors import DatabaseUnavailable

__all__ = ["Cron", "Due", "Periodic", "seconds_first"]

logger = logging.getLogger("procjobs.worker")

_LONGEST_SLEEP = 60.0
_DUE = call_query("due_periodic", ["p_tasks", "p_periodic_ids", "p_crons", "p_timezones", "p_since", "p_max_delay"])

Key = tuple[str, str]


class Cron(str):
    """A cron expression with its time zone: a string, so that Procrastinate's registries and blueprints carry it on."""

    timezone: str

    def __new__(cls, expression: str, timezone: str = "UTC") -> Cron:
        """timezone: a name of the IANA database, such as Europe/Paris."""
        cron = super().__new__(cls, expression)
        cron.timezone = timezone
        return cron


def seconds_first(cron: str) -> str:
    """An expression as SQL reads it: of six fields Procrastinate has the seconds last, procjobs first."""
    fields = cron.split()
    return " ".join([fields[-1], *fields[:-1]]) if len(fields) == 6 else cron


@dataclass(frozen=True)
class Due:
    """What is to be done for one periodic task.

    slots:   epoch seconds, oldest first.
    next_in: seconds until the next slot.
    fault:   why it never fires.
    """

    slots: list[int]
    next_in: float | None
    fault: str | None


class Periodic:
    """Defers the slots that are due. What is due is decided by the database, by its clock.

    Asks and defers through the connector of the tasks' app, one question for all tasks at each wake-up.

    max_delay: seconds; slots missed by more than this while no worker ran are left out.
    """

    def __init__(self, registry: PeriodicRegistry, *, max_delay: float = 600.0, **_: Any) -> None:
        self._tasks: dict[Key, PeriodicTask[Any, Any, Any]] = dict(registry.periodic_tasks)
        self._max_delay = max_delay
        self._since: dict[Key, int] = {}

    async def run(self) -> None:
        """Defer due slots until cancelled; returns when there is no periodic task."""
        while self._tasks:
            wait = await self.tick()
            await asyncio.sleep(wait + 0.01)

    async def tick(self) -> float:
        """Defer what is due now; the seconds until it is worth looking again. Raises DatabaseUnavailable."""
        wait = _LONGEST_SLEEP
        for key, due in (await self._due()).items():
            if due.fault is not None:
                self._leave_out(key, due.fault)
                continue
            try:
                for slot in due.slots:
                    await self._defer(key, slot)
            except exceptions.ConnectorException:
                raise
            except Exception as error:
                self._leave_out(key, str(error), exc_info=True)
                continue
            if due.next_in is not None:
                wait = min(wait, due.next_in)
        return max(0.0, wait)

    async def _due(self) -> dict[Key, Due]:
        if not self._tasks:
            return {}
        keys = list(self._tasks)
        crons = [self._tasks[key].cron for key in keys]
        app: Any = self._tasks[keys[0]].task.blueprint
        try:
            rows = await app.job_manager.connector.execute_query_all_async(
                _DUE,
                p_tasks=[task for task, _ in keys],
                p_periodic_ids=[periodic_id for _, periodic_id in keys],
                p_crons=[seconds_first(cron) for cron in crons],
                p_timezones=[getattr(cron, "timezone", "UTC") for cron in crons],
                p_since=[self._since.get(key) for key in keys],
                p_max_delay=float(self._max_delay),
            )
        except exceptions.ConnectorException as error:
            if getattr(error.__cause__, "sqlstate", None) is None:
                raise DatabaseUnavailable(str(error)) from error
            raise
        return {key: Due(**row) for key, row in zip(keys, rows, strict=True)}

    def _leave_out(self, key: Key, fault: str, *, exc_info: bool = False) -> None:
        periodic = self._tasks.pop(key)
        logger.error(
            "periodic task %s (cron %r, %s) never fires and is left out: %s",
            periodic.task.name,
            str(periodic.cron),
            getattr(periodic.cron, "timezone", "UTC"),
            fault,
            exc_info=exc_info,
            extra={"action": "periodic_task_invalid", "task": periodic.task.name},
        )

    async def _defer(self, key: Key, slot: int) -> None:
        periodic = self._tasks[key]
        options: Any = dict(periodic.configure_kwargs)
        options["task_kwargs"] = {**(options.get("task_kwargs") or {}), "timestamp": slot}
        deferrer = periodic.task.configure(**options)
        try:
            job_id = await deferrer.job_manager.defer_periodic_job(
                job=deferrer.job, periodic_id=periodic.periodic_id, defer_timestamp=slot
            )
        except exceptions.AlreadyEnqueued:
            job_id = None
        self._since[key] = slot
        if job_id is not None:
            logger.info(
                "periodic task %s deferred as job %s",
                periodic.task.name,
                job_id,
                extra={"action": "periodic_task_deferred", "task": periodic.task.name, "job_id": job_id},
            )
