"""Schedules that code and procjobs.toml declare, and calls by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from procrastinate.tasks import Task

from procjobs.db import Calls, Link
from procjobs.engine.arguments import encode
from procjobs.engine.periodic import describe_periodic
from procjobs.engine.retry import seconds_of

if TYPE_CHECKING:
    from procrastinate import App

    from procjobs.settings import Settings

__all__ = ["Declarations", "Preview", "Schedules", "declare"]

logger = logging.getLogger("procjobs.schedules")

_SPANS = ("every", "timeout", "jitter", "misfire_window", "grace")
_DECLARE = "select name, changed, fault from procjobs.declare_schedules(%s, %s::jsonb, %s, %s)"


@dataclass(frozen=True, slots=True)
class Declared:
    """One schedule of a task: what was said, and the task's name then, before blueprints put others before it."""

    name: str | None
    task_name: str
    words: Mapping[str, Any]

    def described(self, task_name: str) -> dict[str, Any]:
        """An element of `procjobs.declare_schedules`."""
        namespace = task_name.removesuffix(self.task_name)
        name = task_name if self.name is None else namespace + self.name
        return {"name": name, "task": task_name, **self.words}


def declare(name: str | None, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A decorator that notes a schedule at its task. Raises ValueError for what cannot be."""
    words = {option: value for option, value in options.items() if value is not None}
    if ("cron" in words) == ("every" in words):
        raise ValueError("a schedule needs either a cron or every=")
    for option in _SPANS:
        if option in words:
            words[option] = seconds_of(words[option])
    if isinstance(words.get("anchor"), datetime):
        words["anchor"] = words["anchor"].isoformat()
    if "args" in words:
        words["args"] = json.loads(encode(name or "schedule", words["args"]))

    def decorate(task: Any) -> Any:
        if not isinstance(task, Task):
            raise TypeError("@app.schedule(...) stands above @app.task")
        noted: list[Declared] = task.__dict__.setdefault("schedules", [])
        if any(other.name == name for other in noted):
            raise ValueError(f"{task.name} has a schedule of that name already: give this one another, name=...")
        noted.append(Declared(name, task.name, words))
        return task

    return decorate


def describe_schedules(app: App) -> list[dict[str, Any]]:
    """What `@app.schedule` says in the app's tasks, as `procjobs.declare_schedules` takes it."""
    tasks = {id(task): task for task in app.tasks.values()}.values()
    return [declared.described(task.name) for task in tasks for declared in getattr(task, "schedules", ())]


class Declarations:
    """Everything that a starting process says about schedules: its environment, procjobs.toml, its code."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def tell(self, link: Link, worker_id: int) -> int:
        """Tell the database; how many schedules this process declares in its code. What cannot be is logged."""
        settings: Settings | None = getattr(self._app, "settings", None)
        if settings is not None:
            await apply_settings(link, settings)
        code = describe_schedules(self._app)
        await _declare(link, "code", code, worker_id)
        periodic = describe_periodic(self._app)
        faults = await _declare(link, "periodic", list(periodic.values()), worker_id, said=False)
        for task in periodic:
            if (fault := faults.get(periodic[task]["name"])) is not None:
                task.leave_out(fault)
        return len(code) + len(periodic)


async def apply_settings(
    link: Link, settings: Settings, *, complete: bool = False
) -> list[tuple[str, bool, str | None]]:
    """Write what settings and procjobs.toml say of schedules, where they say something else than last time.

    complete: what the file said earlier and does not say now is taken back.
    Returns for each schedule of the file its name, whether it changed, and why it cannot be.
    """
    switches = {
        "email_queue": settings.enable_email_queue_job,
        "cleanup": settings.enable_cleanup_jobs,
        "payment_reminders": settings.enable_payment_reminders,
    }
    groups = {group: enabled for group, enabled in switches.items() if enabled is not None}
    if groups or settings.cron_timezone is not None:
        ((said,),) = await link.fetch(
            "select procjobs.apply_environment(%s, %s::jsonb)", (settings.cron_timezone, json.dumps(groups))
        )
        for change in said:
            logger.info("the environment sets %s", change, extra={"action": "schedules_environment"})
    from_file = [{"name": name, **words} for name, words in settings.file_schedules().items()]
    if not from_file and not complete:
        return []
    rows = await link.fetch(_DECLARE, ("file", json.dumps(from_file), None, complete))
    for name, _, fault in rows:
        if fault is not None:
            _complain(name, fault)
    return [(name, changed, fault) for name, changed, fault in rows]


async def _declare(
    link: Link, source: str, described: list[dict[str, Any]], worker_id: int, *, said: bool = True
) -> dict[str, str]:
    if not described:
        return {}
    rows = await link.fetch(_DECLARE, (source, json.dumps(described), worker_id, False))
    faults = {name: fault for name, _, fault in rows if fault is not None}
    if said:
        for name, fault in faults.items():
            _complain(name, fault)
    return faults


def _complain(name: str, fault: str) -> None:
    logger.error("schedule %s is left out: %s", name, fault, extra={"action": "schedule_invalid", "schedule": name})


@dataclass(frozen=True, slots=True)
class Preview:
    """One slot to come: the instant, what the clocks of its zone show then, whether they change (gap, repeat 1,
    repeat 2), and when its job is due."""

    slot: datetime
    local: datetime
    mark: str | None
    job_at: datetime


class Schedules:
    """Schedules by hand: `app.schedules`. Each call is one of the SQL functions of the same name; all raise
    ScheduleNotFound for an unknown name."""

    def __init__(self, database: Callable[[], Awaitable[Calls]]) -> None:
        self._database = database

    async def set(self, name: str, **options: Any) -> datetime | None:
        """Make a schedule, or change what is given of one: `procjobs.schedule`. Returns its next slot.

        options: task, cron or every, args, timezone, queue, priority, tenant, tags, max_attempts, timeout, lock,
        queueing_lock, anchor, jitter, misfire, misfire_window, catch_up, grace, overlap, group, description, reason
        (for procjobs.setting_log). Spans are seconds or timedeltas.
        """
        given = {option: value for option, value in options.items() if value is not None}
        for option in _SPANS:
            if option in given:
                given[option] = timedelta(seconds=seconds_of(given[option]))
        found: datetime | None = await self._call("schedule", name=name, **given)
        return found

    async def set_for(self, name: str, tenant: str, **options: Any) -> datetime | None:
        """A schedule of a tenant's or user's own, at a time of its own. options: cron or every, timezone, args,
        reason."""
        if options.get("every") is not None:
            options["every"] = timedelta(seconds=seconds_of(options["every"]))
        given = {option: value for option, value in options.items() if value is not None}
        found: datetime | None = await self._call("schedule_for", name=name, tenant=tenant, **given)
        return found

    async def remove(self, name: str, reason: str | None = None) -> bool:
        """Remove one, and those for its tenants; its history stays. False if there was none."""
        return bool(await self._call("unschedule", name=name, reason=reason))

    async def pause(self, name: str, reason: str | None = None) -> bool:
        """Hold one off until it is resumed. False if it was."""
        return bool(await self._call("pause_schedule", name=name, reason=reason))

    async def resume(self, name: str, reason: str | None = None) -> bool:
        """Let one go on. False if it was not paused."""
        return bool(await self._call("resume_schedule", name=name, reason=reason))

    async def run_now(self, name: str, *, key: str | None = None, args: dict[str, Any] | None = None) -> int:
        """Run its task now, paused or not; the job's id. The same key again is the same run."""
        return int(await self._call("run_now", name=name, idempotency_key=key, args=args))

    async def backfill(
        self, name: str, begin: datetime, until: datetime | None = None, *, at_most: int = 1000
    ) -> tuple[int, int]:
        """A job for each slot since `begin` that has not fired, the oldest first; how many, and how many remain."""
        arguments: dict[str, Any] = {"name": name, "from": begin, "until": until, "at_most": at_most}
        row = await (await self._database()).row("backfill", **arguments)
        return row["fired"], row["remaining"]

    async def preview(self, name: str, n: int = 10) -> list[Preview]:
        """The next n slots."""
        return await (await self._database()).rows("preview_schedule", as_=Preview, name=name, n=n)

    async def _call(self, function: str, **arguments: Any) -> Any:
        return await (await self._database()).value(function, **arguments)
