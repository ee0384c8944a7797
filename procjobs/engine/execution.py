"""Running one job: reads its arguments, calls the task on the loop, in a thread, process or server; how it ended."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from procrastinate import exceptions, middleware
from procrastinate.job_context import AbortReason, JobContext
from procrastinate.tasks import Task
from procrastinate.worker import Worker as UpstreamWorker

from procjobs.engine.claimed import Claimed, Expiry
from procjobs.engine.endings import describe
from procjobs.engine.processes import ProcessDied, Processes, RemoteError
from procjobs.engine.progress import REPORT, Reporter
from procjobs.engine.results import encode_result, strict_dumps
from procjobs.engine.retry import Retry, Verdict, not_before
from procjobs.engine.sql_jobs import SqlJobs
from procjobs.engine.threads import Threads
from procjobs.errors import JobTimeout

__all__ = ["Execution", "Executor", "execution_of"]

logger = logging.getLogger("procjobs.worker")

Execution = Literal["async", "thread", "process", "sql"]

_LONGEST_MESSAGE = 10_000
_LONGEST_TRACEBACK = 50_000
#: Seconds after its timeout when a job that still runs is worth a line in the log.
_PATIENCE = 10.0


def execution_of(task: Task[Any, Any, Any]) -> Execution:
    """Where a task runs: coroutine functions on the loop, others in a thread, or in a process if the task says so."""
    if getattr(task, "execution", None) == "process":
        return "process"
    return "async" if inspect.iscoroutinefunction(task.func) else "thread"


class Unreadable(Exception):
    """The arguments in the database are not what a task can be called with."""


@dataclass(frozen=True, slots=True)
class _Plan:
    #: None: its body is a routine of the database.
    task: Task[Any, Any, Any] | None
    execution: Execution
    middlewares: list[Any]
    #: A coroutine function without context and middleware: called without any ceremony.
    direct: Callable[..., Any] | None


class Executor:
    """Runs jobs of one worker. `run` never raises: it returns None for success, or the keys of a settlement."""

    def __init__(self, worker: UpstreamWorker, reporter: Reporter, sql_jobs: SqlJobs) -> None:
        self._worker = worker
        self._sql_jobs = sql_jobs
        self._reporter = reporter
        self._plans: dict[str, _Plan] = {}
        self._threads = Threads(worker.concurrency, f"procjobs {worker.worker_name or 'worker'}")
        self._processes = Processes(max(1, min(worker.concurrency, os.cpu_count() or 1)))
        connector = worker.app.connector
        self._loads: Callable[[str], Any] = (
            getattr(connector, "_json_loads", None) or connector.json_loads or json.loads
        )
        self._dumps: Callable[[Any], str] = (
            getattr(connector, "_json_dumps", None) or connector.json_dumps or strict_dumps
        )

    async def close(self) -> None:
        self._threads.close()
        await self._processes.close()
        await self._sql_jobs.close()

    def cancels_by_task(self, job: Claimed) -> bool:
        """Whether cancelling the job's asyncio task stops it; a thread must look at its JobContext itself."""
        plan = self._plans.get(job.task_name)
        return plan is None or plan.execution != "thread"

    async def run(self, job: Claimed) -> dict[str, Any] | None:
        plan: _Plan | None = None
        REPORT.set((self._reporter, job))
        try:
            if job.reason is not None:
                raise asyncio.CancelledError
            plan = self._plans.get(job.task_name) or self._make_plan(job.task_name)
            arguments = self._read(job)
            if plan.direct is not None:
                value = await plan.direct(**arguments)
            else:
                value = await self._call(plan, job, arguments)
            if value is None:
                return None
            if inspect.isgenerator(value) or inspect.isasyncgen(value):
                raise TypeError(f"{job.task_name} is a generator function: calling it runs nothing of it")
            if isinstance(value, Verdict):
                return _storable(value.settlement())
            job.result, job.note = encode_result(value, self._dumps)
            return None
        except BaseException as error:  # whatever a job does, the worker lives
            return self._judge(plan, job, error)

    async def run_within(self, job: Claimed) -> dict[str, Any] | None:
        """`run` for a job with a timeout: when it is over, the job is stopped and ends as failed with JobTimeout.

        A thread cannot be stopped: its job ends so when the function returns or raises, whatever it returned.
        """
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(job.timeout or 0.0, self._expire, job)]
        timers.append(loop.call_later((job.timeout or 0.0) + _PATIENCE, _complain, job))
        try:
            settlement = await self.run(job)
        finally:
            for timer in timers:
                timer.cancel()
        if job.reason is not Expiry.TIMEOUT:
            return settlement
        error = JobTimeout(f"it ran longer than its timeout of {job.timeout:g} s")
        where = {key: value for key, value in (settlement or {}).items() if key == "traceback"}
        plan = self._plans.get(job.task_name)
        return {**_describe(error), **where, "outcome": "failed", **self._retry(plan, job, error)}

    def _expire(self, job: Claimed) -> None:
        if job.reason is None:
            job.reason = Expiry.TIMEOUT
            if job.task is not None and self.cancels_by_task(job):
                job.task.cancel()

    def _make_plan(self, name: str) -> _Plan:
        task = self._worker.app.tasks.get(name)
        if task is None:
            plan = self._plans[name] = _Plan(None, "sql", [], None)
            return plan
        execution = execution_of(task)
        middlewares = self._worker._resolve_task_middlewares(task, execution == "async")
        ceremony = task.pass_context or middlewares or self._worker.worker_middleware or execution != "async"
        plan = _Plan(task, execution, middlewares, None if ceremony else task.func)
        self._plans[name] = plan
        return plan

    def _read(self, job: Claimed) -> dict[str, Any]:
        if job.args == "{}":
            return {}
        try:
            arguments = self._loads(job.args)
        except (ValueError, RecursionError, TypeError) as error:
            raise Unreadable(f"the arguments cannot be read: {type(error).__name__}") from error
        if not isinstance(arguments, dict):
            raise Unreadable(f"the arguments are a JSON {type(arguments).__name__}, not an object")
        return arguments

    async def _call(self, plan: _Plan, job: Claimed, arguments: dict[str, Any]) -> Any:
        worker = self._worker
        context = JobContext(
            app=worker.app,
            worker_name=worker.worker_name,
            worker_queues=worker.queues,
            additional_context=dict(worker.additional_context or {}),
            job=job.as_job(arguments, worker.worker_id),
            abort_reason=lambda: cast("AbortReason | None", job.reason),
            start_timestamp=time.time(),
        )
        report = functools.partial(self._reporter.note, job)

        async def call_task() -> Any:
            if plan.task is None:
                return await self._sql_jobs.run(job, report)
            if plan.execution == "process":
                return await self._processes.run(plan.task, arguments, report)
            positional = [context] if plan.task.pass_context else []
            function = functools.partial(plan.task.func, *positional, **arguments)
            wrapped = middleware.compose(plan.middlewares, function, context, worker)
            value = await (wrapped() if plan.execution == "async" else self._threads.run(wrapped))
            # A plain function may return an awaitable: then that is the work.
            return await value if inspect.isawaitable(value) else value

        return await middleware.compose(worker.worker_middleware, call_task, context, worker)()

    def _judge(self, plan: _Plan | None, job: Claimed, error: BaseException) -> dict[str, Any]:
        match error:
            case exceptions.TaskNotFound():
                return {"outcome": "parked"}
            case Unreadable():
                return {**_describe(error), "outcome": "failed", "kind": "unreadable", "retry": "never"}
            case ProcessDied() if job.reason is None:
                return {**_describe(error), "outcome": "crashed"}
        if job.reason is Expiry.TIMEOUT:
            return _describe(error)  # run_within makes a failure of it
        if job.reason is AbortReason.SHUTDOWN:
            return {"outcome": "released", "started": True}
        cancelled = isinstance(error, asyncio.CancelledError | ProcessDied) and job.reason is not None
        if cancelled or isinstance(error, exceptions.JobAborted):
            return {"outcome": "cancelled"}
        return {**_describe(error), "outcome": "failed", **self._retry(plan, job, error)}

    def _retry(self, plan: _Plan | None, job: Claimed, error: BaseException) -> dict[str, Any]:
        if plan is None or plan.task is None or (strategy := plan.task.retry_strategy) is None:
            return {}  # only a limit on the job itself allows another run; SQL knows it
        if isinstance(error, RemoteError):
            error = error.original()
        if isinstance(strategy, Retry):
            return not_before(error) if strategy.applies_to(error) else {"retry": "never"}
        try:
            decided = plan.task.get_retry_exception(error, job.as_job(self._read(job), self._worker.worker_id))
        except Exception as broken:
            return {"retry": "never", "error_message": _text(f"{error}\n\nits retry strategy failed too: {broken!r}")}
        if decided is None:
            return {"retry": "never"}
        decision = decided.retry_decision
        return {
            "retry": "at",
            "retry_at": decision.retry_at.isoformat() if decision.retry_at else None,
            "priority": decision.priority,
            "queue": decision.queue,
            "lock": decision.lock,
        }


def _complain(job: Claimed) -> None:
    logger.warning(
        "job %s (%s) still runs %g s after its timeout of %g s: it must look at context.should_abort(), "
        "and let a cancellation through",
        job.id,
        job.task_name,
        _PATIENCE,
        job.timeout,
        extra={"action": "timeout_ignored", "job_id": job.id, "task": job.task_name},
    )


def _describe(error: BaseException) -> dict[str, Any]:
    if isinstance(error, RemoteError):
        name, message, trace = error.error_class, str(error), error.trace
    else:
        name, message, trace = describe(error)
    return {
        "error_class": name,
        "error_message": _text(message),
        "traceback": _text(trace, _LONGEST_TRACEBACK),
    }


def _storable(settlement: dict[str, Any]) -> dict[str, Any]:
    """Reasons are the task's own words, or whatever else it gave."""
    return {key: value if isinstance(value, int | float) else _text(str(value)) for key, value in settlement.items()}


def _text(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """What PostgreSQL can store: no NUL, no lone surrogates, not endless; of a long text the end says most."""
    if len(text) > longest:
        text = f"... {text[-longest:]}"
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
