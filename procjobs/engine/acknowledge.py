"""Acknowledging: the ends of runs go to the database in batches, and none is ever dropped.

While one batch is on its way the next one gathers; an unloaded worker acknowledges each job at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from procjobs.db import Link
from procjobs.engine.backoff import Backoff
from procjobs.engine.claimed import Claimed
from procjobs.engine.failpoints import failpoint
from procjobs.errors import DatabaseError, DatabaseUnavailable

__all__ = ["Acknowledger"]

logger = logging.getLogger("procjobs.worker")

_FINISH = "select * from procjobs.finish_jobs(%s, %s::bigint[], %s::int[], %s)"
#: The same with what the tasks returned; only when one did.
_FINISH_WITH = "select * from procjobs.finish_jobs(%s, %s::bigint[], %s::int[], %s, %s::jsonb[], %s::text[])"
_SETTLE = "select id, result from procjobs.settle_jobs(%s, %s::jsonb)"
#: Somebody's open transaction holds a row for longer than the lock_timeout of finish_jobs and settle_jobs.
_ROW_HELD = "55P03"
#: Among others: a row was on its way into the default partition of the history when its own was attached.
_PARTITION_ATTACHED = "23514"
#: Data exceptions, broken constraints, exceeded limits, what triggers raise, our own refusals: the same call never
#: succeeds. Anything else, such as a function that is missing while the database is upgraded, may pass.
_UNACCEPTABLE = ("22", "23", "38", "39", "54", "P0", "PJ")
#: After so many errors in a row, which are somebody in the way or a timeout that is too short, smaller batches.
_PATIENCE = 3
_LARGEST_BATCH = 1000
#: Characters of results in one call.
_MOST_RESULTS = 8 * 1024 * 1024

Settlement = tuple[Claimed, dict[str, Any]]


class Acknowledger:
    """Sends finished and otherwise ended runs of one worker to the database.

    on_durable:    called with the jobs whose end is durable, or void because the lease was lost.
    finished_jobs: archive, keep or delete, for runs that succeeded; keep holds for the others too.
    delete_failed: forget jobs that ended in another way and will not run again.
    """

    def __init__(
        self,
        link: Link,
        on_durable: Callable[[Sequence[Claimed]], None],
        *,
        finished_jobs: str,
        delete_failed: bool,
    ) -> None:
        self.worker_id = 0
        self._link = link
        self._finished_jobs = finished_jobs
        self._disposal = {"keep": finished_jobs == "keep", "delete": delete_failed}
        self._on_durable = on_durable
        self._finished: list[Claimed] = []
        self._settled: list[Settlement] = []
        self._wake = asyncio.Event()

    def finished(self, job: Claimed) -> None:
        """The run succeeded."""
        self._finished.append(job)
        self._wake.set()

    def settled(self, job: Claimed, settlement: dict[str, Any]) -> None:
        """The run ended in another way: the keys of `settle_jobs`, without id and lease."""
        self._settled.append((job, settlement))
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._finished or self._settled:
                finished, self._finished = self._finished[:_LARGEST_BATCH], self._finished[_LARGEST_BATCH:]
                settled, self._settled = self._settled[:_LARGEST_BATCH], self._settled[_LARGEST_BATCH:]
                try:
                    await self._send_finished(self._current(finished))
                    await self._send_settled(settled)
                except BaseException:
                    self._finished, self._settled = finished + self._finished, settled + self._settled
                    raise

    def _current(self, jobs: list[Claimed]) -> list[Claimed]:
        void = [job for job in jobs if job.fenced]
        if not void:
            return jobs
        self._on_durable(void)
        return [job for job in jobs if not job.fenced]

    async def _send_finished(self, jobs: list[Claimed]) -> None:
        if not jobs:
            return
        query, parameters = self._finish_call(jobs)
        if len(jobs) > 1 and _weight(jobs) > _MOST_RESULTS:
            await self._send_halves(jobs)
            return
        failpoint("before_finish")
        try:
            rows, repeated = await self._persist(query, parameters, len(jobs))
        except DatabaseError as error:
            # One job that cannot be ended must not keep the others from ending.
            if len(jobs) > 1:
                await self._send_halves(jobs)
            elif jobs[0].result is not None and (error.sqlstate or "").startswith(_UNACCEPTABLE):
                jobs[0].result, jobs[0].note = None, "its result was not kept: PostgreSQL cannot store it"
                await self._send_finished(jobs)
            elif (error.sqlstate or "").startswith(_UNACCEPTABLE):
                await self._send_settled([(jobs[0], _unrecordable(error, "succeeded"))])
            else:
                self._again_later(error, self.finished, jobs[0])
            return
        failpoint("after_finish")
        if len(rows) < len(jobs) and not repeated:
            ended = {row[0] for row in rows}
            self._report_stale([job for job in jobs if job.id not in ended])
        self._on_durable(jobs)

    def _finish_call(self, jobs: list[Claimed]) -> tuple[Any, tuple[Any, ...]]:
        parameters = (self.worker_id, [job.id for job in jobs], [job.lease for job in jobs], self._finished_jobs)
        if any(job.result is not None or job.note is not None for job in jobs):
            return _FINISH_WITH, (*parameters, [job.result for job in jobs], [job.note for job in jobs])
        return _FINISH, parameters

    async def _send_halves(self, jobs: list[Claimed]) -> None:
        half = len(jobs) // 2
        await self._send_finished(jobs[:half])
        await self._send_finished(jobs[half:])

    async def _send_settled(self, settled: list[Settlement]) -> None:
        void = [job for job, _ in settled if job.fenced]
        self._on_durable(void)
        settled = [(job, settlement) for job, settlement in settled if not job.fenced]
        if not settled:
            return
        batch = [{"id": job.id, "lease": job.lease, **self._disposal, **settlement} for job, settlement in settled]
        failpoint("before_settle")
        try:
            rows, repeated = await self._persist(_SETTLE, (self.worker_id, json.dumps(batch, default=str)), len(batch))
        except DatabaseError as error:
            if len(settled) > 1:
                half = len(settled) // 2
                await self._send_settled(settled[:half])
                await self._send_settled(settled[half:])
            else:
                self._settle_otherwise(*settled[0], error)
            return
        failpoint("after_settle")
        if not repeated:
            stale = {row[0] for row in rows if row[1] == "stale"}
            self._report_stale([job for job, _ in settled if job.id in stale])
        self._on_durable([job for job, _ in settled])

    def _settle_otherwise(self, job: Claimed, settlement: dict[str, Any], error: DatabaseError) -> None:
        """An end that the database cannot take becomes a plain failure; any other is tried again."""
        final = settlement.get("error_class") == _UNRECORDABLE
        if (error.sqlstate or "").startswith(_UNACCEPTABLE) and not final:
            settlement = _unrecordable(error, settlement["outcome"])
            self.settled(job, settlement)
        else:
            self._again_later(error, self.settled, job, settlement)

    def _again_later(self, error: DatabaseError, send: Callable[..., None], job: Claimed, *more: Any) -> None:
        """One job whose end cannot be recorded now must not keep the others: they go on, and it comes again."""
        logger.error(
            "the end of job %s cannot be recorded, trying again: %s",
            job.id,
            error,
            extra={"action": "settle_failed", "job_id": job.id},
        )
        asyncio.get_running_loop().call_later(random.uniform(1.0, 2.0), send, job, *more)

    async def _persist(self, query: Any, parameters: tuple[Any, ...], size: int) -> tuple[list[Any], bool]:
        """Rows, and whether an earlier try may have taken effect without our seeing its reply.

        size: how many jobs; several are given up earlier than one, since they can be sent in parts.
        """
        backoff = Backoff()
        repeated = False
        rerouted = refused = 0
        while True:
            try:
                return await self._link.fetch(query, parameters), repeated
            except DatabaseUnavailable as error:
                if not repeated:
                    logger.warning(
                        "finished jobs wait for the database: %s", error, extra={"action": "acknowledge_waits"}
                    )
                repeated = True
            except DatabaseError as error:
                rerouted += error.sqlstate == _PARTITION_ATTACHED
                refused += 1
                if error.sqlstate == _ROW_HELD or not (error.transient or 1 <= rerouted <= 3):
                    raise
                if size > 1 and refused >= _PATIENCE:
                    raise
            await backoff.wait()

    def _report_stale(self, jobs: list[Claimed]) -> None:
        for job in jobs:
            logger.warning(
                "job %s (%s): the lease was lost, its result is void",
                job.id,
                job.task_name,
                extra={"action": "stale_result", "job_id": job.id, "task": job.task_name},
            )


def _weight(jobs: list[Claimed]) -> int:
    return sum(len(job.result) for job in jobs if job.result is not None)


_UNRECORDABLE = "AcknowledgementFailed"


def _unrecordable(error: DatabaseError, ended: str) -> dict[str, Any]:
    return {
        "outcome": "failed",
        "retry": "never",
        "error_class": _UNRECORDABLE,
        "error_message": f"the job ended as {ended}, but this could not be recorded: {error}",
    }
