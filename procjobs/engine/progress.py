"""How far a job has come: said by the task, wherever it runs, and written at most once a second."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from procjobs.db import Link
from procjobs.engine.claimed import Claimed
from procjobs.errors import DatabaseError, DatabaseUnavailable

__all__ = ["REPORT", "Reporter", "progress"]

logger = logging.getLogger("procjobs.worker")

Report = Callable[[float | None, str | None], None]

#: Where a running job's reports go; unset outside a job.
REPORT: ContextVar[tuple[Reporter, Claimed] | Report | None] = ContextVar("procjobs_report", default=None)

_EVERY = 1.0
_WRITE = (
    "select count(procjobs.report_progress(r.id, r.lease, r.percent, r.message)) "
    "from unnest(%s::bigint[], %s::int[], %s::float8[], %s::text[]) as r (id, lease, percent, message)"
)


def progress(percent: float | None, message: str | None = None) -> None:
    """Say how far the running job has come: `progress(40, "half of the pages")`.

    percent: 0 to 100, or None where there is no number. Raises ValueError for anything else.
    message: at most 1000 characters are kept.

    Works in coroutines, threads and processes and never waits: the newest report is written within a second, 0 and 100
    at once. Outside a job it does nothing, so that the task's function can be called as it is.
    """
    if percent is not None and not (math.isfinite(percent) and 0 <= percent <= 100):
        raise ValueError(f"percent={percent!r}: a number from 0 to 100 is required, or None")
    running = REPORT.get()
    if running is None:
        return
    if isinstance(running, tuple):
        reporter, job = running
        reporter.note(job, percent, message)
    else:
        running(percent, message)


class Reporter:
    """Writes the reports of one worker's jobs; `note` may be called from any thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._pending: dict[int, tuple[Claimed, float | None, str | None]] = {}
        self._written: dict[int, float] = {}

    def note(self, job: Claimed, percent: float | None, message: str | None) -> None:
        """Keep the newest report of a job."""
        text = None if message is None else str(message)[:1000].replace("\x00", "\ufffd")
        report = (job, percent, None if text is None else text.encode("utf-8", "replace").decode())
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, report)

    def forget(self, jobs: Sequence[Claimed]) -> None:
        """These runs are over: what they did not get to say is not said any more."""
        if self._written or self._pending:
            for job in jobs:
                self._pending.pop(job.id, None)
                self._written.pop(job.id, None)

    async def run(self) -> None:
        """Write until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._pending:
                    if due := self._due():
                        await self._write(due)
                    if self._pending:
                        await asyncio.sleep(0.1)
        finally:
            await self._link.close()

    def _take(self, report: tuple[Claimed, float | None, str | None]) -> None:
        if report[0].task is not None and not report[0].fenced:
            self._pending[report[0].id] = report
            self._wake.set()

    def _due(self) -> list[tuple[Claimed, float | None, str | None]]:
        now = time.monotonic()
        due = [
            report
            for job_id, report in self._pending.items()
            if report[1] in (0, 100) or now - self._written.get(job_id, -math.inf) >= _EVERY
        ]
        for job, _, _ in due:
            del self._pending[job.id]
            self._written[job.id] = now
        return due

    async def _write(self, due: list[tuple[Claimed, float | None, str | None]]) -> None:
        jobs = [report[0] for report in due]
        values = (
            [job.id for job in jobs],
            [job.lease for job in jobs],
            [report[1] for report in due],
            [report[2] for report in due],
        )
        try:
            await self._link.fetch(_WRITE, values)
        except DatabaseUnavailable:
            await asyncio.sleep(1.0)  # newer reports will come; these are not worth keeping
        except DatabaseError as error:
            logger.warning("progress could not be written: %s", error, extra={"action": "progress_failed"})
