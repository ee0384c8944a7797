"""A job that this worker holds, from its claim until the database has its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Any

from procrastinate.job_context import AbortReason
from procrastinate.jobs import Job, Status

__all__ = ["CLAIM", "Claimed", "Expiry"]

#: The columns in the order of `Claimed`'s fields.
CLAIM = (
    "select id, lease, task_name, args, lock, attempts, queue_name, priority, queueing_lock, scheduled_at, "
    "max_attempts, timeout_seconds from procjobs.claim_jobs(%s, %s, %s)"
)


class Expiry(Enum):
    """Beside Procrastinate's reasons to abort a job: what `context.abort_reason()` gives when its time is over."""

    TIMEOUT = "timeout"


class Claimed:
    """One claim: (id, lease) is the fence of everything said about it. A plain class with slots: there are many."""

    __slots__ = (
        "args",
        "attempts",
        "ended",
        "entered",
        "fenced",
        "id",
        "lease",
        "lock",
        "max_attempts",
        "note",
        "priority",
        "queue",
        "queueing_lock",
        "reason",
        "result",
        "scheduled_at",
        "since",
        "task",
        "task_name",
        "timeout",
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
        self.timeout: float | None
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
            self.timeout,
        ) = row
        #: When it was claimed, then when it was started (monotonic seconds).
        self.since = since
        #: The asyncio task that runs it, once started.
        self.task: asyncio.Task[None] | None = None
        #: Whether the run is over.
        self.ended = False
        #: Whether that task took its first step: before it, cancelling would lose the job.
        self.entered = False
        #: Why it should stop, if it should.
        self.reason: AbortReason | Expiry | None = None
        #: The lease was lost: whatever comes of this run is void.
        self.fenced = False
        #: What the task returned, as JSON text, and what is to be said of a run that succeeded.
        self.result: str | None = None
        self.note: str | None = None

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
