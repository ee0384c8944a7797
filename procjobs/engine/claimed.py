"""A job that this worker holds, from its claim until the database has its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from procrastinate.job_context import AbortReason
from procrastinate.jobs import Job, Status

__all__ = ["CLAIM", "Claimed"]

#: The columns in the order of `Claimed`'s fields.
CLAIM = (
    "select id, lease, task_name, args, lock, attempts, queue_name, priority, queueing_lock, scheduled_at, "
    "max_attempts from procjobs.claim_jobs(%s, %s, %s)"
)


class Claimed:
    """One claim: (id, lease) is the fence of everything said about it. A plain class with slots: there are many."""

    __slots__ = (
        "args",
        "attempts",
        "entered",
        "fenced",
        "id",
        "lease",
        "lock",
        "max_attempts",
        "priority",
        "queue",
        "queueing_lock",
        "reason",
        "scheduled_at",
        "since",
        "task",
        "task_name",
    )

    def __init__(self, row: Sequence[Any], since: float) -> None:
        self.id: int
        self.lease: int
        self.task_name: str
        self.args: str
        self.lock: str | None
        self.attempts: int
        self.queue: str
        self.priority: int
        self.queueing_lock: str | None
        self.scheduled_at: datetime | None
        self.max_attempts: int | None
        (
            self.id,
            self.lease,
            self.task_name,
            self.args,
            self.lock,
            self.attempts,
            self.queue,
            self.priority,
            self.queueing_lock,
            self.scheduled_at,
            self.max_attempts,
        ) = row
        #: When it was claimed, then when it was started (monotonic seconds).
        self.since = since
        #: The asyncio task that runs it, once started.
        self.task: asyncio.Task[None] | None = None
        #: Whether that task took its first step: before it, cancelling would lose the job.
        self.entered = False
        #: Why it should stop, if it should.
        self.reason: AbortReason | None = None
        #: The lease was lost: whatever comes of this run is void.
        self.fenced = False

    def as_job(self, arguments: dict[str, Any], worker_id: int | None) -> Job:
        """Procrastinate's form of it, for contexts, middleware and retry strategies."""
        return Job(
            id=self.id,
            status=Status.DOING.value,
            queue=self.queue,
            priority=self.priority,
            lock=self.lock,
            queueing_lock=self.queueing_lock,
            task_name=self.task_name,
            task_kwargs=arguments,
            scheduled_at=self.scheduled_at,
            attempts=self.attempts,
            worker_id=worker_id,
        )
