"""SQL jobs: the body of their task is a function or procedure of the database, which the worker calls.

Each runs on a connection of its own, outside any transaction of ours, so that a procedure may commit as it goes. What
to run, and whether this login may, `procjobs.open_sql_job` says; while it runs, an advisory lock keeps the job from
running twice, even where the server has not noticed that an earlier worker is gone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from procrastinate.exceptions import TaskNotFound

from procjobs.db import Session, Target
from procjobs.engine.claimed import Claimed
from procjobs.engine.processes import ProcessDied, RemoteError
from procjobs.engine.results import Json
from procjobs.engine.retry import Settled
from procjobs.errors import DatabaseError, DatabaseUnavailable

__all__ = ["SqlJobs"]

Report = Callable[[float | None, str | None], None]

_OPEN = (
    "select kind, case kind when 'procedure' then 'do ' || quote_literal(statement) "
    "else 'select q.result::text from (' || statement || ') q' end, run_as, problem "
    "from procjobs.open_sql_job(%s, %s, %s::jsonb)"
)
_PREPARE = (
    "select set_config('procjobs.job', %s, false), set_config('procjobs.reports', 'notice', false), "
    "set_config('application_name', left(%s, 63), false), set_config('statement_timeout', %s, false), "
    "set_config('client_connection_check_interval', %s, false), set_config('role', %s, false)"
)
_RESULT = "select nullif(current_setting('procjobs.result', true), '')"
#: What the routine did to its session is undone, first of all the role.
_CLEAN = "reset role; reset all; select procjobs.close_sql_job({})"
#: The SQLSTATE of what procjobs.progress says.
_PROGRESS = "01PJ1"
#: Seconds over the job's timeout after which the server stops the statement, should the worker not have done so.
_PATIENCE = 5.0
#: Milliseconds, the most that statement_timeout takes.
_LONGEST = 2**31 - 1
#: Seconds until a job that found no connection is tried again.
_NO_ROOM = 5.0


class SqlJobs:
    """Runs routines over at most `size` connections; one is kept for the next job.

    target: where to connect, directly: what a session sets must hold for the next statement.
    """

    def __init__(self, target: Target, size: int) -> None:
        self._target = target
        self._slots = asyncio.Semaphore(size)
        self._idle: _Connection | None = None

    async def run(self, job: Claimed, report: Report) -> Any:
        """Run the routine of a job: its result as Json, None, or a verdict.

        report: called with percent and message whenever the routine says how far it is.
        Raises TaskNotFound, RemoteError, ProcessDied; cancelling stops the routine in the server.
        """
        async with self._slots:
            connection, self._idle = self._idle or _Connection(self._target), None
            try:
                return await connection.run(job, report)
            finally:
                if self._idle is None and connection.clean:
                    self._idle = connection
                else:
                    await connection.close()

    async def close(self) -> None:
        """Drop the connection that is kept."""
        connection, self._idle = self._idle, None
        if connection is not None:
            await connection.close()


class _Connection:
    def __init__(self, target: Target) -> None:
        self._session = Session(target, "procjobs sql", self._heard)
        self._report: Report | None = None
        self._open = False
        #: Whether the next job may have it.
        self.clean = False

    async def run(self, job: Claimed, report: Report) -> Any:
        self.clean = False
        try:
            if not self._open or self._session.lost:
                await self._session.open()
                self._open = True
            ((kind, statement, run_as, problem),) = await self._session.fetch(_OPEN, (job.id, job.task_name, job.args))
        except DatabaseUnavailable:
            return Settled({"outcome": "snoozed", "delay": _NO_ROOM})
        self.clean = True
        if kind == "unknown":
            raise TaskNotFound(job.task_name)
        if problem is not None:
            return Settled(problem)
        self._report = report
        try:
            return await self._call(job, kind, statement, run_as)
        finally:
            self._report = None
            self.clean = await self._clean_up(job)

    async def _call(self, job: Claimed, kind: str, statement: str, run_as: str | None) -> Json | None:
        seconds = 0.0 if job.timeout is None else job.timeout + _PATIENCE
        settings = (
            f"{job.id}/{job.lease}",
            f"procjobs job {job.id} {job.task_name}",
            f"{min(int(seconds * 1000), _LONGEST)}",
            self._session.client_check,
            run_as if run_as is not None and kind == "function" else "none",
        )
        try:
            await self._session.fetch(_PREPARE, settings)
            rows = await self._session.run(statement)
            if kind == "procedure":
                rows = await self._session.fetch(_RESULT)
        except DatabaseError as error:
            if self._session.lost:
                raise ProcessDied("the connection was lost while the server ran the routine") from error
            raise _described(error) from error
        text = rows[0][0] if rows else None
        return None if text is None or text == "null" else Json(text)

    async def _clean_up(self, job: Claimed) -> bool:
        """Whether it is as new."""
        if self._session.lost:
            return False
        with suppress(DatabaseError):
            await self._session.run(_CLEAN.format(int(job.id)))
            return True
        return False

    def _heard(self, state: str | None, message: str | None) -> None:
        if state != _PROGRESS or self._report is None or message is None:
            return
        with suppress(ValueError):
            said = json.loads(message)
            self._report(said["percent"], said["message"])

    async def close(self) -> None:
        await self._session.close()


def _described(error: DatabaseError) -> RemoteError:
    """The error of a routine, in the words in which run_sql_jobs tells it."""
    words = [str(error), error.detail and f"DETAIL: {error.detail}", error.hint and f"HINT: {error.hint}"]
    return RemoteError(f"SQLSTATE {error.sqlstate}", "\n".join(filter(None, words)), error.context or "")
