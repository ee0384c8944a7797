"""Telling the database which tasks there are: their arguments, their queue, and how they are retried."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from procrastinate.tasks import Task

from procjobs.db import Link
from procjobs.engine.arguments import Signature
from procjobs.engine.enqueue import Enqueuer
from procjobs.engine.execution import execution_of
from procjobs.engine.retry import Retry
from procjobs.errors import DatabaseError, MigrationError

if TYPE_CHECKING:
    from procrastinate import App

__all__ = ["describe_tasks", "register"]

#: Undefined function, table, schema: this database has no procjobs, or an older one.
_NOT_INSTALLED = ("42883", "42P01", "3F000")


def describe_tasks(app: App) -> list[dict[str, Any]]:
    """One element of `procjobs.register_tasks` for each name and alias of the app's tasks."""
    described = []
    for name, task in sorted(app.tasks.items()):
        signature = app.job_manager.signature(task) if isinstance(app.job_manager, Enqueuer) else Signature(task)
        described.append(_describe(name, task, signature))
    return described


def _describe(name: str, task: Task[Any, Any, Any], signature: Signature) -> dict[str, Any]:
    retry = task.retry_strategy if isinstance(task.retry_strategy, Retry) else None
    return {
        "name": name,
        "queue": task.queue,
        "priority": task.priority,
        "lock": task.lock,
        "queueing_lock": task.queueing_lock,
        "args_schema": signature.schema,
        "execution": execution_of(task),
        "max_attempts": retry.max_attempts if retry else None,
        "backoff_base": retry.base_seconds if retry else None,
        "backoff_cap": retry.cap_seconds if retry else None,
        "backoff_jitter": retry.jitter if retry else None,
        "timeout": getattr(task, "timeout", None),
        "uniqueness": unique.rule if (unique := getattr(task, "unique", None)) else None,
        "description": (inspect.getdoc(task.func) or "").partition("\n")[0] or None,
    }


async def register(link: Link, tasks: list[dict[str, Any]], by: str) -> int:
    """Register tasks; how many changed. Raises MigrationError when the database has no procjobs."""
    try:
        ((count,),) = await link.fetch("select procjobs.register_tasks(%s::jsonb, %s)", (json.dumps(tasks), by))
    except DatabaseError as error:
        if error.sqlstate in _NOT_INSTALLED:
            raise MigrationError(
                "this database has no procjobs schema of this version", hint="run: procjobs migrate"
            ) from error
        raise
    changed: int = count
    return changed
