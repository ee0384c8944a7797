"""Listing jobs for Procrastinate's API and shell: what is waiting and running, and what ended, from the history too."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from procrastinate import jobs
from procrastinate.manager import JobManager
from procrastinate.testing import InMemoryConnector

from procjobs.db import call_query

__all__ = ["Lister"]

_JOBS = (
    "select * from procjobs.all_jobs "
    "where (%(id)s::bigint is null or id = %(id)s::bigint) "
    "and (%(queue)s::text is null or queue_name = %(queue)s::text) "
    "and (%(task)s::text is null or task_name = %(task)s::text) "
    "and (%(status)s::text is null or status::text = %(status)s::text) "
    "and (%(lock)s::text is null or lock = %(lock)s::text) "
    "and (%(queueing_lock)s::text is null or queueing_lock = %(queueing_lock)s::text) "
    "and (%(worker_id)s::bigint is null or worker_id = %(worker_id)s::bigint) "
    "order by id"
)
_COUNTS = call_query("count_jobs", ["p_by", "p_queue", "p_task", "p_status", "p_lock"])
_LONG_RUNNING = call_query("long_running_jobs", ["p_seconds", "p_queue", "p_task"])
#: Those that upstream counts; it also has a deprecated `aborting`.
_STATUSES = ("todo", "doing", "succeeded", "failed", "cancelled", "aborted")


class Lister(JobManager):
    """Procrastinate's lists over all jobs, wherever they are. With an in-memory connector upstream's own."""

    @property
    def in_memory(self) -> bool:
        return isinstance(self.connector, InMemoryConnector)

    async def list_jobs_async(
        self,
        id: int | None = None,  # noqa: A002  (Procrastinate's name)
        queue: str | None = None,
        task: str | None = None,
        status: str | None = None,
        lock: str | None = None,
        queueing_lock: str | None = None,
        worker_id: int | None = None,
    ) -> Iterable[jobs.Job]:
        """The jobs that match, by id."""
        filters: dict[str, Any] = {
            "id": id, "queue": queue, "task": task, "status": status, "lock": lock, "queueing_lock": queueing_lock,
            "worker_id": worker_id,
        }  # fmt: skip
        if self.in_memory:
            return await super().list_jobs_async(**filters)
        return [*map(jobs.Job.from_row, await self.connector.execute_query_all_async(_JOBS, **filters))]

    def list_jobs(
        self,
        id: int | None = None,  # noqa: A002  (Procrastinate's name)
        queue: str | None = None,
        task: str | None = None,
        status: str | None = None,
        lock: str | None = None,
        queueing_lock: str | None = None,
        worker_id: int | None = None,
    ) -> list[jobs.Job]:
        """Sync version of `list_jobs_async`."""
        filters: dict[str, Any] = {
            "id": id, "queue": queue, "task": task, "status": status, "lock": lock, "queueing_lock": queueing_lock,
            "worker_id": worker_id,
        }  # fmt: skip
        if self.in_memory:
            return super().list_jobs(**filters)
        return [*map(jobs.Job.from_row, self.connector.get_sync_connector().execute_query_all(_JOBS, **filters))]

    async def list_queues_async(
        self, queue: str | None = None, task: str | None = None, status: str | None = None, lock: str | None = None
    ) -> Iterable[dict[str, Any]]:
        """Queues by name, with how many jobs they have in each status."""
        if self.in_memory:
            return await super().list_queues_async(queue, task, status, lock)
        return await self._counts_async("queue", queue, task, status, lock)

    def list_queues(
        self, queue: str | None = None, task: str | None = None, status: str | None = None, lock: str | None = None
    ) -> Iterable[dict[str, Any]]:
        """Sync version of `list_queues_async`."""
        if self.in_memory:
            return super().list_queues(queue, task, status, lock)
        return self._counts("queue", queue, task, status, lock)

    async def list_tasks_async(
        self, queue: str | None = None, task: str | None = None, status: str | None = None, lock: str | None = None
    ) -> Iterable[dict[str, Any]]:
        """Tasks by name, with how many jobs they have in each status."""
        if self.in_memory:
            return await super().list_tasks_async(queue, task, status, lock)
        return await self._counts_async("task", queue, task, status, lock)

    def list_tasks(
        self, queue: str | None = None, task: str | None = None, status: str | None = None, lock: str | None = None
    ) -> Iterable[dict[str, Any]]:
        """Sync version of `list_tasks_async`."""
        if self.in_memory:
            return super().list_tasks(queue, task, status, lock)
        return self._counts("task", queue, task, status, lock)

    async def list_locks_async(
        self, queue: str | None = None, task: str | None = None, status: str | None = None, lock: str | None = None
    ) -> Iterable[dict[str, Any]]:
        """Locks by name, with how many jobs they have in each status."""
        if self.in_memory:
            return await super().list_locks_async(queue, task, status, lock)
        return await self._counts_async("lock", queue, task, status, lock)

    def list_locks(
        self, queue: str | None = None, task: str | None = None, status: str | None = None, lock: str | None = None
    ) -> Iterable[dict[str, Any]]:
        """Sync version of `list_locks_async`."""
        if self.in_memory:
            return super().list_locks(queue, task, status, lock)
        return self._counts("lock", queue, task, status, lock)

    async def get_stalled_jobs(
        self,
        nb_seconds: int | None = None,
        queue: str | None = None,
        task_name: str | None = None,
        seconds_since_heartbeat: float = 30,
    ) -> Iterable[jobs.Job]:
        """Running jobs of workers without a heartbeat; with nb_seconds, which is deprecated, those that run so long."""
        if nb_seconds is None or self.in_memory:
            return await super().get_stalled_jobs(nb_seconds, queue, task_name, seconds_since_heartbeat)
        warnings.warn("nb_seconds is deprecated: leave it out, and heartbeats count", DeprecationWarning, stacklevel=2)
        rows = await self.connector.execute_query_all_async(
            _LONG_RUNNING, p_seconds=nb_seconds, p_queue=queue, p_task=task_name
        )
        return [*map(jobs.Job.from_row, rows)]

    async def _counts_async(self, by: str, *filters: str | None) -> list[dict[str, Any]]:
        return [*map(_counted, await self.connector.execute_query_all_async(_COUNTS, **_asked(by, *filters)))]

    def _counts(self, by: str, *filters: str | None) -> list[dict[str, Any]]:
        rows = self.connector.get_sync_connector().execute_query_all(_COUNTS, **_asked(by, *filters))
        return [*map(_counted, rows)]


def _asked(by: str, queue: str | None, task: str | None, status: str | None, lock: str | None) -> dict[str, Any]:
    return {"p_by": by, "p_queue": queue, "p_task": task, "p_status": status, "p_lock": lock}


def _counted(row: Mapping[str, Any]) -> dict[str, Any]:
    counts = {status: row["stats"].get(status, 0) for status in _STATUSES}
    return {"name": row["name"], "jobs_count": row["jobs_count"], **counts}
