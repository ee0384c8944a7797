"""Procrastinate's `@app.periodic` as schedules: each slot once over the fleet, in the task's own time zone."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from procrastinate.periodic import PeriodicTask

from procjobs.engine.enqueue import Enqueuer

if TYPE_CHECKING:
    from procrastinate import App

__all__ = ["Cron", "Periodic", "describe_periodic", "seconds_first"]

logger = logging.getLogger("procjobs.worker")

#: Seconds for which Procrastinate catches slots up.
MAX_DELAY = 600.0
#: What the row of a schedule says and Procrastinate's decorator has.
_OPTIONS = ("queue", "priority", "lock", "queueing_lock")


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


@dataclass(frozen=True, eq=False)
class Periodic:
    """One periodic task of Procrastinate's registry."""

    periodic: PeriodicTask[Any, Any, Any]

    @property
    def timezone(self) -> str:
        """That of our decorator; Procrastinate's own knows UTC only."""
        return str(getattr(self.periodic.cron, "timezone", "UTC"))

    def described(self, max_delay: float) -> dict[str, Any]:
        """An element of `procjobs.declare_schedules`. Raises what deferring would raise."""
        task, options = self.periodic.task, self.periodic.configure_kwargs
        probe: Any = {**options, "task_kwargs": {**(options.get("task_kwargs") or {}), "timestamp": 0}}
        job = task.configure(**probe).job
        manager: Any = task.blueprint.job_manager  # type: ignore[attr-defined]
        arguments = json.loads(manager.checked_arguments(job)) if isinstance(manager, Enqueuer) else job.task_kwargs
        del arguments["timestamp"]
        return {
            "name": ":".join(filter(None, (task.name, self.periodic.periodic_id))),
            "task": task.name,
            "cron": seconds_first(self.periodic.cron),
            "timezone": self.timezone,
            "args": arguments,
            **{option: getattr(job, option) for option in _OPTIONS if options.get(option) is not None},
            "lock": job.lock,
            "queueing_lock": job.queueing_lock,
            "periodic_id": self.periodic.periodic_id,
            "misfire": "all",
            "catch_up": 10_000,
            "misfire_window": max_delay,
            "overlap": "allow",
        }

    def leave_out(self, fault: str, *, exc_info: bool = False) -> None:
        """Say why it never fires."""
        logger.error(
            "periodic task %s (cron %r, %s) never fires and is left out: %s",
            self.periodic.task.name,
            str(self.periodic.cron),
            self.timezone,
            fault,
            exc_info=exc_info,
            extra={"action": "periodic_task_invalid", "task": self.periodic.task.name},
        )


def describe_periodic(app: App) -> dict[Periodic, dict[str, Any]]:
    """The app's periodic tasks as `procjobs.declare_schedules` takes them; one that cannot be deferred is logged."""
    max_delay = float(app.periodic_defaults.get("max_delay", MAX_DELAY))
    described = {}
    for periodic in map(Periodic, app.periodic_registry.periodic_tasks.values()):
        try:
            described[periodic] = periodic.described(max_delay)
        except Exception as error:
            periodic.leave_out(str(error), exc_info=True)
    return described
