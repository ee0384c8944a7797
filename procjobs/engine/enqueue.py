"""Enqueueing from Python: Procrastinate's JobManager, arguments checked, one statement for any number of jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from procrastinate import exceptions, jobs
from procrastinate.connector import BaseConnector
from procrastinate.manager import JobManager
from procrastinate.tasks import Task
from procrastinate.testing import InMemoryConnector

from procjobs.db import call_query
from procjobs.engine.arguments import Signature, encode

__all__ = ["DeferredTask", "Deferrer", "Enqueuer", "adopt", "quietly"]

logger = logging.getLogger("procjobs.enqueue")

P = ParamSpec("P")
Args = ParamSpec("Args")
R = TypeVar("R")

_ENQUEUE = (
    "select enqueue_jobs as id from procjobs.enqueue_jobs(%(tasks)s::text[], %(queues)s::text[], "
    "%(priorities)s::int[], %(locks)s::text[], %(queueing_locks)s::text[], %(args)s::text[], "
    "%(scheduled_at)s::timestamptz[])"
)
_PERIODIC = call_query(
    "defer_periodic",
    ["p_task", "p_periodic_id", "p_timestamp", "p_queue", "p_priority", "p_lock", "p_queueing_lock", "p_args"],
)
_DELETE_OLD = call_query("delete_old_jobs", ["p_hours", "p_queue", "p_statuses"])
_STATUS = "select status from procjobs.job_status(%(job_id)s) as status"


class Enqueuer(JobManager):
    """What `app.job_manager` is: upstream's methods over our SQL. With an in-memory connector upstream's own."""

    def __init__(self, connector: BaseConnector, tasks: Mapping[str, Task[Any, Any, Any]]) -> None:
        super().__init__(connector)
        self._tasks = tasks
        self._signatures: dict[str, tuple[Task[Any, Any, Any], Signature]] = {}

    @property
    def in_memory(self) -> bool:
        return isinstance(self.connector, InMemoryConnector)

    def signature(self, task: Task[Any, Any, Any]) -> Signature:
        """The task's signature, compiled once."""
        known = self._signatures.get(task.name)
        if known is None or known[0] is not task:
            known = (task, Signature(task))
            self._signatures[task.name] = known
        return known[1]

    def checked_arguments(self, job: jobs.Job) -> str:
        """A job's arguments as JSON text. Raises InvalidArguments and its kinds."""
        dumps = getattr(self.connector, "_json_dumps", None) or self.connector.json_dumps
        text = encode(job.task_name, job.task_kwargs, dumps)
        task = self._tasks.get(job.task_name)
        if task is not None:
            self.signature(task).check(text)
        return text

    def _defer_jobs_query_kwargs(self, jobs: list[jobs.Job]) -> dict[str, Any]:
        if self.in_memory:
            return super()._defer_jobs_query_kwargs(jobs)
        return {
            "query": _ENQUEUE,
            "tasks": [job.task_name for job in jobs],
            "queues": [job.queue for job in jobs],
            "priorities": [job.priority for job in jobs],
            "locks": [job.lock for job in jobs],
            "queueing_locks": [job.queueing_lock for job in jobs],
            "args": [self.checked_arguments(job) for job in jobs],
            "scheduled_at": [job.scheduled_at for job in jobs],
        }

    async def defer_periodic_job(self, job: jobs.Job, periodic_id: str, defer_timestamp: int) -> int | None:
        """Defer one slot of a periodic task; None when this slot, or a later one, was deferred already."""
        if self.in_memory:
            return await super().defer_periodic_job(job, periodic_id, defer_timestamp)
        if job.task_kwargs.get("timestamp") != defer_timestamp:
            raise exceptions.InvalidTimestamp
        try:
            row = await self.connector.execute_query_one_async(
                _PERIODIC,
                p_task=job.task_name,
                p_periodic_id=periodic_id,
                p_timestamp=defer_timestamp,
                p_queue=job.queue,
                p_priority=job.priority,
                p_lock=job.lock,
                p_queueing_lock=job.queueing_lock,
                p_args=self.checked_arguments(job),
            )
        except exceptions.UniqueViolation as error:
            self._raise_already_enqueued(exc=error, queueing_lock=job.queueing_lock)
        found: int | None = row["defer_periodic"]
        return found

    async def get_job_status_async(self, job_id: int, connection: Any | None = None) -> jobs.Status:
        """The status of a job, running, waiting or ended."""
        if self.in_memory:
            return await super().get_job_status_async(job_id, connection)
        if connection is not None:
            row = await self.connector.execute_query_one_async_with_connection(connection, _STATUS, job_id=job_id)
        else:
            row = await self.connector.execute_query_one_async(_STATUS, job_id=job_id)
        return jobs.Status(row["status"])

    def get_job_status(self, job_id: int, connection: Any | None = None) -> jobs.Status:
        """Sync version of `get_job_status_async`."""
        if self.in_memory:
            return super().get_job_status(job_id, connection)
        connector = self.connector.get_sync_connector()
        if connection is not None:
            row = connector.execute_query_one_with_connection(connection, _STATUS, job_id=job_id)
        else:
            row = connector.execute_query_one(_STATUS, job_id=job_id)
        return jobs.Status(row["status"])

    async def delete_old_jobs(
        self,
        nb_hours: int,
        queue: str | None = None,
        include_failed: bool | None = False,
        include_cancelled: bool | None = False,
        include_aborted: bool | None = False,
    ) -> None:
        """Delete jobs that ended more than nb_hours ago, from the job table and the history, in small transactions."""
        if self.in_memory:
            return await super().delete_old_jobs(nb_hours, queue, include_failed, include_cancelled, include_aborted)
        chosen = {
            jobs.Status.SUCCEEDED: True,
            jobs.Status.FAILED: include_failed,
            jobs.Status.CANCELLED: include_cancelled,
            jobs.Status.ABORTED: include_aborted,
        }
        statuses = [status.value for status, wanted in chosen.items() if wanted]
        deleted = 1
        while deleted:
            row = await self.connector.execute_query_one_async(
                _DELETE_OLD, p_hours=nb_hours, p_queue=queue, p_statuses=statuses
            )
            deleted = row["delete_old_jobs"]
        return None


class Deferrer(jobs.JobDeferrer):
    """Procrastinate's JobDeferrer without the arguments in its log records, and without the cost of preparing them."""

    def _log_before_defer_jobs(self, jobs: list[jobs.Job]) -> None:
        """Nothing has happened yet."""

    def _log_after_defer_jobs(self, jobs: list[jobs.Job]) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "deferred %d %s of %s",
                len(jobs),
                "job" if len(jobs) == 1 else "jobs",
                self.job.task_name,
                extra={
                    "action": "jobs_deferred",
                    "task": self.job.task_name,
                    "job_ids": [job.id for job in jobs[:100]],
                },
            )


class DeferredTask(Task[P, R, Args], Generic[P, R, Args]):
    """A task whose jobs are deferred by `Deferrer`."""

    def configure(self, **options: Any) -> jobs.JobDeferrer:
        return quietly(super().configure(**options))


def quietly(deferrer: jobs.JobDeferrer) -> Deferrer:
    """The same deferrer as one of ours."""
    return Deferrer(job_manager=deferrer.job_manager, job=deferrer.job, connection=deferrer.connection)


def adopt(task: Task[Any, Any, Any]) -> None:
    """Make a task that Procrastinate's decorator built one of ours, in place: references to it are already out."""
    if type(task) is Task:
        task.__class__ = DeferredTask
