"""Batches from Python: jobs that belong together, and what is enqueued when they have all ended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from procrastinate import jobs
from procrastinate.tasks import Task
from procrastinate.types import JSONDict

from procjobs.engine.enqueue import Deferrer, Enqueuer
from procjobs.engine.unique import JobId

__all__ = ["Batch", "Callback", "open_batch"]

#: What to enqueue at the end: a task, or `task.configure(task_kwargs={...}, queue=...)` with arguments and options.
Callback = Task[Any, Any, Any] | jobs.JobDeferrer


class Batch:
    """An open batch. `configure(batch=...)` takes it too."""

    def __init__(self, manager: Enqueuer, batch_id: int, name: str) -> None:
        self._manager = manager
        self.id = batch_id
        self.name = name

    def __int__(self) -> int:
        return self.id

    async def defer(self, task: Task[Any, Any, Any], **task_kwargs: Any) -> JobId:
        """Defer a job of the batch; its id. Raises InvalidState when the batch is sealed."""
        (job_id,) = await self.defer_many(task, task_kwargs)
        return job_id

    async def defer_many(self, task: Task[Any, Any, Any], *task_kwargs: JSONDict) -> list[JobId]:
        """Defer many jobs of one task; their ids, in order."""
        deferrer: Any = task.configure(batch=self.id)  # type: ignore[call-arg]
        ids: list[JobId] = await deferrer.batch_defer_async(*task_kwargs)
        return ids

    async def seal(self) -> bool:
        """Say that there are no more jobs: from now on the batch can finish. False if it was sealed before."""
        row = await self._manager.call("seal_batch", batch_id=self.id)
        return bool(row["seal_batch"])


@asynccontextmanager
async def open_batch(manager: Enqueuer, name: str, callbacks: dict[str, Callback | None]) -> AsyncIterator[Batch]:
    """Open a batch; seal it on leaving, unless an exception is raised: then it stays open and calls nothing back."""
    given = {event: json.dumps(_callback(what)) for event, what in callbacks.items() if what is not None}
    row = await manager.call("create_batch", name=name, **given)
    batch = Batch(manager, row["create_batch"], name)
    yield batch
    await batch.seal()


def _callback(what: Callback) -> JSONDict:
    """An element of defer_many's array."""
    deferrer = what if isinstance(what, jobs.JobDeferrer) else what.configure()
    job = deferrer.job
    options = deferrer.options if isinstance(deferrer, Deferrer) and deferrer.options else {}
    return {
        "task": job.task_name,
        "args": job.task_kwargs,
        "queue": job.queue,
        "priority": job.priority,
        "lock": job.lock,
        "queueing_lock": job.queueing_lock,
        "scheduled_at": None if job.scheduled_at is None else job.scheduled_at.isoformat(),
        **options,
    }
