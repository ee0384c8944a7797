"""Enqueueing from Python: Procrastinate's JobManager, arguments checked, one statement for any number of jobs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, ParamSpec, TypeVar

from procrastinate import exceptions, jobs
from procrastinate.connector import BaseConnector
from procrastinate.tasks import Task
from procrastinate.types import JSONDict

from procjobs.db import call_query
from procjobs.engine.arguments import Signature, encode, encode_all
from procjobs.engine.connector import Connector, quicken
from procjobs.engine.listing import Lister
from procjobs.engine.unique import OPTIONS, JobId, Waiter, job_options, seconds
from procjobs.errors import translate

__all__ = ["DeferredTask", "Deferrer", "Enqueuer", "adopt", "own_options", "quietly"]

logger = logging.getLogger("procjobs.enqueue")

P = ParamSpec("P")
Args = ParamSpec("Args")
R = TypeVar("R")

_ENQUEUE = (
    "select ids, duplicates from procjobs.enqueue(%(task)s, %(queue)s, %(priority)s::int, %(lock)s, "
    "%(queueing_lock)s, %(scheduled_at)s::timestamptz, %(args)s, %(options)s::jsonb)"
)
#: The same for `Connector.row`; `_enqueue_query` has its values in this order.
_ENQUEUE_BY_POSITION = (
    "select ids, duplicates from procjobs.enqueue(%s, %s, %s::int, %s, %s, %s::timestamptz, %s, %s::jsonb)"
)
_ENQUEUE_MIXED = (
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


class Enqueuer(Lister):
    """What `app.job_manager` is: upstream's methods over our SQL. With an in-memory connector upstream's own."""

    def __init__(
        self, connector: BaseConnector, tasks: Mapping[str, Task[Any, Any, Any]], waiter: Waiter | None = None
    ) -> None:
        super().__init__(connector)
        self._waiter = waiter
        quicken(connector)
        self._tasks = tasks
        self._signatures: dict[str, tuple[Task[Any, Any, Any], Signature]] = {}

    def signature(self, task: Task[Any, Any, Any]) -> Signature:
        """The task's signature, compiled once."""
        known = self._signatures.get(task.name)
        if known is None or known[0] is not task:
            known = (task, Signature(task))
            self._signatures[task.name] = known
        return known[1]

    def checked_arguments(self, job: jobs.Job) -> str:
        """A job's arguments as JSON text. Raises InvalidArguments and its kinds."""
        return self._encoded(job.task_name, [job.task_kwargs])[0]

    def _encoded_array(self, name: str, arguments: Sequence[JSONDict]) -> str:
        """Checked arguments as one JSON array: many in one go, unless something is wrong with one of them."""
        if len(arguments) > 1 and self._json_dumps is None:
            text = encode_all(name, arguments)
            task = self._tasks.get(name)
            if text is not None and (task is None or self.signature(task).takes_all(text)):
                return text
        return f"[{','.join(self._encoded(name, arguments))}]"

    @property
    def _json_dumps(self) -> Callable[[Any], str | bytes] | None:
        """The connector's own serializer, if it has one."""
        found: Callable[[Any], str | bytes] | None = getattr(self.connector, "_json_dumps", None)
        return found or self.connector.json_dumps

    def _encoded(self, name: str, arguments: Sequence[JSONDict]) -> list[str]:
        dumps = self._json_dumps
        texts = [encode(name, given, dumps) for given in arguments]
        task = self._tasks.get(name)
        if task is not None:
            check = self.signature(task).check
            for text in texts:
                check(text)
        return texts

    def _job_ids(self, found: Sequence[int], duplicates: Sequence[int] | None) -> list[JobId]:
        ids = [JobId.of(job_id, self._waiter) for job_id in found]
        for ordinal in duplicates or ():
            ids[ordinal - 1].duplicate = True
        return ids

    async def enqueue_async(
        self, job: jobs.Job, arguments: Sequence[JSONDict], options: JSONDict | None, connection: Any | None
    ) -> list[JobId]:
        """Enqueue jobs like `job`, one for each of `arguments`, in one round trip. Their ids, in order."""
        if not arguments:
            return []
        query = self._enqueue_query(job, arguments, options)
        try:
            if connection is None and type(self.connector) is Connector:
                return self._job_ids(*await self.connector.row(_ENQUEUE_BY_POSITION, tuple(query.values())))
            if connection is not None:
                row = await self.connector.execute_query_one_async_with_connection(connection, _ENQUEUE, **query)
            else:
                row = await self.connector.execute_query_one_async(_ENQUEUE, **query)
        except exceptions.ConnectorException as error:
            raise self._refusal(error, job) from error
        return self._job_ids(row["ids"], row["duplicates"])

    def enqueue(
        self, job: jobs.Job, arguments: Sequence[JSONDict], options: JSONDict | None, connection: Any | None
    ) -> list[JobId]:
        """Sync version of `enqueue_async`."""
        if not arguments:
            return []
        query = self._enqueue_query(job, arguments, options)
        connector = self.connector.get_sync_connector()
        try:
            if connection is not None:
                row = connector.execute_query_one_with_connection(connection, _ENQUEUE, **query)
            else:
                row = connector.execute_query_one(_ENQUEUE, **query)
        except exceptions.ConnectorException as error:
            raise self._refusal(error, job) from error
        return self._job_ids(row["ids"], row["duplicates"])

    async def call(self, function: str, **arguments: Any) -> dict[str, Any]:
        """The row of one of our SQL functions, through the app's connector. Raises what it refuses with."""
        try:
            row = await self.connector.execute_query_one_async(call_query(function, list(arguments)), **arguments)
        except exceptions.ConnectorException as error:
            raise self._refusal(error, None) from error
        found: dict[str, Any] = row
        return found

    async def enqueue_by_key(
        self, function: str, task: Task[Any, Any, Any], key: str, spans: Mapping[str, float | timedelta | None],
        arguments: JSONDict, options: Mapping[str, Any],
    ) -> JobId:  # fmt: skip
        """`debounce` or `throttle` a job of the task."""
        (text,) = self._encoded(task.name, [arguments])
        row = await self.call(
            function,
            task=task.name,
            key=key,
            args=text,
            **{name: timedelta(seconds=seconds(span)) for name, span in spans.items() if span is not None},
            **{name: value for name, value in options.items() if value is not None},
        )
        return JobId.of(row[function], self._waiter)

    def _enqueue_query(self, job: jobs.Job, arguments: Sequence[JSONDict], options: JSONDict | None) -> dict[str, Any]:
        return {
            "task": job.task_name,
            "queue": job.queue,
            "priority": job.priority,
            "lock": job.lock,
            "queueing_lock": job.queueing_lock,
            "scheduled_at": job.scheduled_at,
            "args": self._encoded_array(job.task_name, arguments),
            "options": json.dumps(options) if options else None,
        }

    def _refusal(self, error: exceptions.ConnectorException, job: jobs.Job | None) -> Exception:
        """What to raise for an error of the connector: upstream's for a queueing lock, ours for our SQL's codes."""
        if isinstance(error, exceptions.UniqueViolation):
            try:
                self._raise_already_enqueued(exc=error, queueing_lock=error.queueing_lock)
            except exceptions.ConnectorException as raised:
                return raised
        cause: Any = error.__cause__
        state = getattr(cause, "sqlstate", None) or ""
        if state == "PJ006" and job is not None:
            return exceptions.AlreadyEnqueued(
                "Job cannot be enqueued: there is already a job in the queue "
                f"with the queueing lock {job.queueing_lock}"
            )
        return translate(cause) if state.startswith("PJ") else error

    def _defer_jobs_query_kwargs(self, jobs: list[jobs.Job]) -> dict[str, Any]:
        if self.in_memory:
            return super()._defer_jobs_query_kwargs(jobs)
        return {
            "query": _ENQUEUE_MIXED,
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
    """Procrastinate's JobDeferrer in one round trip, with our options, and without the arguments in its log records.

    It returns ints that also tell whether the job was there already, and wait for its end: `await job_id.result()`.
    """

    options: JSONDict | None = None

    async def defer_async(self, **task_kwargs: Any) -> JobId:
        """Defer one job; its id."""
        (job_id,) = await self.batch_defer_async(task_kwargs)
        return job_id

    def defer(self, **task_kwargs: Any) -> JobId:
        """Sync version of `defer_async`."""
        (job_id,) = self.batch_defer(task_kwargs)
        return job_id

    async def batch_defer_async(self, *task_kwargs: JSONDict) -> list[JobId]:  # type: ignore[override]
        """Defer many jobs; their ids, in order."""
        manager = self.job_manager
        if not isinstance(manager, Enqueuer) or manager.in_memory:
            return [JobId(job_id) for job_id in await super().batch_defer_async(*task_kwargs)]
        ids = await manager.enqueue_async(self.job, self._all(task_kwargs), self.options, self.connection)
        self._log_deferred(ids)
        return ids

    def batch_defer(self, *task_kwargs: JSONDict) -> list[JobId]:  # type: ignore[override]
        """Sync version of `batch_defer_async`."""
        manager = self.job_manager
        if not isinstance(manager, Enqueuer) or manager.in_memory:
            return [JobId(job_id) for job_id in super().batch_defer(*task_kwargs)]
        ids = manager.enqueue(self.job, self._all(task_kwargs), self.options, self.connection)
        self._log_deferred(ids)
        return ids

    def _all(self, task_kwargs: Sequence[JSONDict]) -> Sequence[JSONDict]:
        common = self.job.task_kwargs
        return [{**common, **given} for given in task_kwargs] if common else task_kwargs

    def _log_before_defer_jobs(self, jobs: list[jobs.Job]) -> None:
        """Nothing has happened yet."""

    def _log_after_defer_jobs(self, jobs: list[jobs.Job]) -> None:
        self._log_deferred([job.id or 0 for job in jobs])

    def _log_deferred(self, ids: Sequence[int]) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "deferred %d %s of %s",
                len(ids),
                "job" if len(ids) == 1 else "jobs",
                self.job.task_name,
                extra={"action": "jobs_deferred", "task": self.job.task_name, "job_ids": [*map(int, ids[:100])]},
            )


class DeferredTask(Task[P, R, Args], Generic[P, R, Args]):
    """A task whose jobs are deferred by `Deferrer`."""

    def configure(self, **options: Any) -> Deferrer:
        """Procrastinate's options for a job, and

        tenant:       whom it is for, where queues take turns.
        unique_key:   a job with this key that is waiting or running is taken instead: its id, and `duplicate`.
        unique_for:   the same for that long after it was enqueued, whatever became of it: seconds or a timedelta.
        unique_while: `waiting`, `unfinished` (the default) or `retained` instead of waiting or running.
        tags:         words to find it by.
        max_attempts: runs in all, over the task's own.
        timeout:      how long one run may take: seconds or a timedelta.
        batch:        the batch it belongs to, or its id.
        """
        ours = own_options(options)
        return quietly(super().configure(**options), ours)


def own_options(options: dict[str, Any]) -> JSONDict | None:
    """Take our options out of those of `configure`; None if there are none."""
    found = OPTIONS.intersection(options)
    return job_options({name: options.pop(name) for name in found}) if found else None


def quietly(deferrer: jobs.JobDeferrer, options: JSONDict | None = None) -> Deferrer:
    """The same deferrer as one of ours."""
    if isinstance(deferrer, Deferrer):
        return deferrer
    ours = Deferrer(job_manager=deferrer.job_manager, job=deferrer.job, connection=deferrer.connection)
    ours.options = options
    return ours


def adopt(task: Task[Any, Any, Any]) -> None:
    """Make a task that Procrastinate's decorator built one of ours, in place: references to it are already out."""
    if type(task) is Task:
        task.__class__ = DeferredTask
