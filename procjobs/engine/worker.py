"""The worker: claims jobs, runs them, and reports how they ended, through outages, cancellation and deploys.

One worker is one asyncio loop with connections of its own (claims, acknowledgements, upkeep, clock, aborts, LISTEN; up
to four for SQL jobs) and one more for its heartbeat thread. `run` lives as long as the worker; everything beside the
claim loop is supervised: it fails, waits with jitter and starts again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from procrastinate.job_context import AbortReason
from procrastinate.jobs import DeleteJobCondition
from procrastinate.manager import get_channel_for_queues
from procrastinate.worker import Worker as UpstreamWorker

from procjobs.db import Link, Target
from procjobs.engine.acknowledge import Acknowledger
from procjobs.engine.backoff import Backoff
from procjobs.engine.claimed import CLAIM, Claimed, Expiry
from procjobs.engine.endings import log_settlement, log_success
from procjobs.engine.execution import Executor
from procjobs.engine.failpoints import failpoint
from procjobs.engine.hand import Hand
from procjobs.engine.presence import Card, Presence
from procjobs.engine.progress import Reporter
from procjobs.engine.registration import describe_tasks, register
from procjobs.engine.schedules import Declarations
from procjobs.engine.sql_jobs import SqlJobs
from procjobs.engine.supervision import Side, enter, pause, see_through, sides, stop_signals
from procjobs.engine.ticker import Ticker
from procjobs.engine.upkeep import Upkeep
from procjobs.errors import DatabaseError, DatabaseUnavailable, ProcjobsError, WorkerGone

if TYPE_CHECKING:
    from procrastinate import App

__all__ = ["ShutdownIncomplete", "Worker"]

logger = logging.getLogger("procjobs.worker")

#: By statement_timeout, mostly.
_TOOK_TOO_LONG = "57014"


class ShutdownIncomplete(ProcjobsError):
    """Some jobs did not stop in time; they are left to rescue. The process should end with a non-zero exit code."""


class Worker(UpstreamWorker):
    """What `App.run_worker_async` runs. Takes Procrastinate's worker options, and:

    target, listen_target: where to connect; LISTEN needs a direct connection when a pooler sits in front.
    finished_jobs:         archive (default), keep or delete; `delete_jobs` wins where it says more.
    kill_timeout:          seconds that cancelled jobs get before the worker leaves without them.

    `update_heartbeat_interval` and `stalled_worker_timeout` are the heartbeat and the lease, in seconds.
    """

    def __init__(
        self,
        app: App,
        *,
        target: Target,
        listen_target: Target | None = None,
        finished_jobs: str = "archive",
        kill_timeout: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(app=app, **options)
        self._target = target
        self._listen_target = listen_target or target
        self._kill_timeout = kill_timeout
        self._reporter = Reporter(Link(target, "procjobs progress"))
        self._executor = Executor(self, self._reporter, SqlJobs(self._listen_target, min(self.concurrency, 4)))
        self._hand = Hand(self.concurrency)
        self._claims = Link(target, "procjobs claim")
        self._keeping = Link(target, "procjobs upkeep")
        self._reports = Link(target, "procjobs finish")
        self._acknowledger = Acknowledger(
            self._reports,
            self._on_durable,
            finished_jobs=self._disposal(finished_jobs),
            delete_failed=self.delete_jobs is DeleteJobCondition.ALWAYS,
        )
        self._upkeep = Upkeep(
            self._keeping, tick=self.update_heartbeat_interval, after_round=lambda: self._give_back(self._hand.stale())
        )
        self._presence = Presence(
            target, self._keeping, on_abort=self._abort, on_dead=self._lose_lease, on_silent=self._fence
        )
        self._ticking = Link(target, "procjobs tick")
        self._ticker = Ticker(self._ticking, self._label(), self._stop_event)
        self._declarations = Declarations(app)
        self._work_event = asyncio.Event()
        self._abort_event = asyncio.Event()
        self._enough = asyncio.Event()
        self._hard_stop = asyncio.Event()
        self._gone = False
        self._orphans_possible = False
        self._heeds_signals = False

    def _disposal(self, finished_jobs: str) -> str:
        if self.delete_jobs in (DeleteJobCondition.ALWAYS, DeleteJobCondition.SUCCESSFUL):
            return "delete"
        return finished_jobs

    # -- lifecycle -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until stopped (or, with wait=False, until nothing is left to do).

        Cancelling the task that runs this stops the worker in order, and raises CancelledError when that is done. A
        second time takes the running jobs from it at once, as if the shutdown timeout were over; a third stops waiting.

        Raises ShutdownIncomplete when jobs had to be left behind, DatabaseError when the worker cannot start.
        """
        # Whoever runs us in a thread has a process of his own to end.
        self._heeds_signals = self.install_signal_handlers and threading.current_thread() is threading.main_thread()
        self._stop_event.clear()
        self._enough.clear()
        self._hard_stop.clear()
        self.run_task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        main = asyncio.create_task(self._main(), name="procjobs worker")
        try:
            await see_through(main, self._urge)
        finally:
            self._loop = None

    def _urge(self) -> None:
        """Stop; asked again, without waiting for running jobs; and again, at once."""
        if self._enough.is_set():
            self._hard_stop.set()
        elif self._stop_event.is_set():
            self._enough.set()
        self.stop()  # type: ignore[no-untyped-call]

    async def _main(self) -> None:
        try:
            with self._signals():  # from before the registration: a worker that others see alive stops in order
                await enter(self._enter, self._stop_event)
                async with sides(self._sides()):
                    try:
                        await self._claim_until_stopped()
                    except asyncio.CancelledError:
                        # Everything is cancelled, what reports our jobs too: the loop is being closed.
                        self._hard_stop.set()
                        raise
                    finally:
                        await self._leave()
        finally:
            await self._close()

    def _sides(self) -> dict[str, Side]:
        named: dict[str, Side] = {
            "acknowledge": self._acknowledger.run,
            "upkeep": self._upkeep.run,
            "progress": self._reporter.run,
            "lease": self._presence.watch,
            "aborts": self._watch_aborts,
            "schedules": self._ticker.run,
        }
        if self.listen_notify:
            named["listen"] = self._listen
        for name, task in self.app.tasks.items():
            beside: Callable[[App, str | None], Awaitable[None]] | None = getattr(task, "beside", None)
            if beside is not None and (self.queues is None or task.queue in self.queues):
                named[f"beside {name}"] = functools.partial(beside, self.app, self.worker_name)
        return named

    async def _enter(self) -> None:
        """Register the tasks and this worker, and do one round of upkeep and of the clock: what is due is claimable."""
        await register(self._keeping, describe_tasks(self.app), self._label())
        await self._register()
        await self._upkeep.round()
        await self._ticker.tick()
        logger.info(
            "worker %s started on %s, concurrency %d",
            self._label(),
            "all queues" if self.queues is None else ", ".join(self.queues),
            self.concurrency,
            extra={"action": "worker_started", "worker_id": self.worker_id},
        )

    def _label(self) -> str:
        return self.worker_name or "worker"

    async def _register(self) -> None:
        self._gone = False
        self.worker_id = self._acknowledger.worker_id = await self._presence.register(
            Card(
                name=self._label(),
                queues=self._queue_names(),
                tasks=sorted(self.app.tasks),
                concurrency=self.concurrency,
                heartbeat_every=self.update_heartbeat_interval,
                lease=self.stalled_worker_timeout,
            )
        )
        await self._declarations.tell(self._keeping, self.worker_id)

    def _queue_names(self) -> list[str] | None:
        return None if self.queues is None else list(self.queues)

    def _signals(self) -> AbstractContextManager[None]:
        """First SIGTERM or SIGINT: stop gracefully. Second: leave at once."""
        return stop_signals(self._on_signal) if self._heeds_signals else nullcontext()

    def _on_signal(self) -> None:
        if self._stop_event.is_set():
            logger.warning("second signal: leaving at once", extra={"action": "hard_stop"})
            self._hard_stop.set()
        self.stop()  # type: ignore[no-untyped-call]

    # -- claiming --------------------------------------------------------------------------------------------------

    async def _claim_until_stopped(self) -> None:
        backoff = Backoff()
        while not self._stop_event.is_set():
            self._work_event.clear()
            room = self._hand.room()
            if room <= 0:
                await self._pause(None)
                continue
            if self._presence.silent and not self._gone:
                await self._pause(self.update_heartbeat_interval, wakeable=False)  # we would have to stop them at once
                continue
            try:
                if self._gone:
                    await self._register()
                jobs = await self._claim(room)
                backoff.reset()
            except WorkerGone:
                self._lose_lease()
                continue
            except DatabaseUnavailable as error:
                # The claim may have been committed before its reply was lost.
                self._orphans_possible = True
                logger.warning("claiming waits for the database: %s", error, extra={"action": "reconnecting"})
                await self._pause(backoff.next(), wakeable=False)
                continue
            except DatabaseError as error:
                self._orphans_possible = True
                if error.sqlstate == _TOOK_TOO_LONG:
                    self._hand.refused(room)
                logger.error("claiming failed, trying again: %s", error, extra={"action": "claim_failed"})
                await self._pause(backoff.next(), wakeable=False)
                continue
            self._take(jobs)
            if len(jobs) < room and not await self._more_may_come(bool(jobs)):
                return

    async def _more_may_come(self, claimed: bool) -> bool:
        """Wait for something to claim. False: with wait=False, nothing runs that could still make some."""
        if self.wait:
            await self._pause(self.fetch_job_polling_interval * random.uniform(0.9, 1.0))
        elif self._hand:
            await self._pause(None if not claimed else 0.0)
        elif not claimed and not self._work_event.is_set():
            return False  # and nothing ended while we asked, which might have let others go
        return True

    async def _claim(self, room: int) -> list[Claimed]:
        if self._orphans_possible:
            ((count,),) = await self._claims.fetch(
                "select procjobs.release_unknown(%s, %s::bigint[], %s::int[])",
                (self.worker_id, *self._hand.claims()),
            )
            self._orphans_possible = False
            if count:
                logger.warning(
                    "gave back %d jobs whose claim had lost its reply", count, extra={"action": "orphans_released"}
                )
        rows = await self._claims.fetch(CLAIM, (self.worker_id, self._queue_names(), room))
        failpoint("after_claim", rows)
        now = time.monotonic()
        return [Claimed(row, now) for row in rows]

    def _take(self, jobs: Sequence[Claimed]) -> None:
        self._hand.take(jobs)
        self._start_ready()

    def _start_ready(self) -> None:
        if self._stop_event.is_set():
            return
        while job := self._hand.next():
            job.task = asyncio.create_task(self._run_job(job))

    async def _pause(self, seconds: float | None, *, wakeable: bool = True) -> None:
        """Wait until there may be work, the worker is asked to stop, or the time is over."""
        await pause(seconds, self._stop_event, *([self._work_event] if wakeable else []))

    # -- running ---------------------------------------------------------------------------------------------------

    async def _run_job(self, job: Claimed) -> None:
        job.entered = True
        began = job.since = time.monotonic()
        logger.debug("job %s (%s) started", job.id, job.task_name)
        if job.timeout is None:
            settlement = await self._executor.run(job)
        else:
            settlement = await self._executor.run_within(job)
        took = time.monotonic() - began
        if settlement is None:
            if logger.isEnabledFor(logging.INFO):
                log_success(job, took)
            self._acknowledger.finished(job)
        else:
            log_settlement(job, settlement, took)
            self._acknowledger.settled(job, settlement)
        self._hand.end(job, took)
        self._start_ready()

    def _on_durable(self, jobs: Sequence[Claimed]) -> None:
        """The database has the end of these jobs: there is room for others."""
        if jobs:
            self._reporter.forget(jobs)
            self._hand.release(jobs)
            self._start_ready()
            self._work_event.set()

    # -- cancelling ------------------------------------------------------------------------------------------------

    def _abort(self, job_ids: Iterable[int]) -> None:
        for job_id in job_ids:
            job = self._hand.get(job_id)
            if job is not None and job.reason is None:
                self._interrupt(job, AbortReason.USER_REQUEST)

    def _interrupt(self, job: Claimed, reason: AbortReason) -> None:
        if job.reason is not Expiry.TIMEOUT:  # which stays what it was, however the run comes to its end
            job.reason = reason
        if job.task is None:
            if self._hand.put_back(job):
                released = {"outcome": "released", "started": False}
                cancelled = {"outcome": "cancelled"}
                self._acknowledger.settled(job, cancelled if reason is AbortReason.USER_REQUEST else released)
        elif job.entered and self._executor.cancels_by_task(job):
            job.task.cancel()

    def _lose_lease(self) -> None:
        """The database gave our jobs to others: whatever we still do for them is void."""
        if self._gone:
            return
        self._gone = True
        self._orphans_possible = False  # rescue has them
        logger.error(
            "worker %s was declared dead: its %d jobs were given to others; registering again",
            self.worker_id,
            len(self._hand),
            extra={"action": "lease_lost", "worker_id": self.worker_id},
        )
        for job in self._hand:
            job.fenced = True
            self._interrupt(job, AbortReason.SHUTDOWN)
        self._work_event.set()

    def _fence(self, silence: float) -> None:
        """Without a heartbeat for a whole lease others may run our jobs at any moment."""
        stopping = [job for job in self._hand if job.reason is None]
        if stopping:
            logger.error(
                "no heartbeat for %.1f s: stopping %d jobs, others may run them",
                silence,
                len(stopping),
                extra={"action": "self_fenced"},
            )
        self._give_back(stopping)

    def _give_back(self, jobs: Iterable[Claimed]) -> None:
        """Back to waiting: what has not started at once, what runs as soon as it has stopped."""
        for job in jobs:
            self._interrupt(job, AbortReason.SHUTDOWN)

    async def _watch_aborts(self) -> None:
        """Confirm in the database what a NOTIFY hinted at; anybody may send one."""
        link = Link(self._target, "procjobs aborts")
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.abort_job_polling_interval):
                        await self._abort_event.wait()
                self._abort_event.clear()
                if self._hand:
                    ((job_ids,),) = await link.fetch("select procjobs.abort_requests(%s)", (self.worker_id,))
                    self._abort(job_ids)
                await asyncio.sleep(0.05)  # a flood of hints is one look
        finally:
            await link.close()

    # -- side jobs -------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        queues = self._queue_names()
        # Longer names have no channel of their own: procjobs.wake_queues.
        short = queues is not None and all(len(queue.encode()) <= 40 for queue in queues)
        channels = list(get_channel_for_queues(queues if short else None))
        link = Link(self._listen_target, "procjobs listen")
        async for payload, sender in link.listen(channels):
            if "abort" in payload:
                self._abort_event.set()
            elif sender != self._reports.pid:  # what our own acknowledgement let go, we look for after it anyway
                self._work_event.set()

    # -- leaving ---------------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        self._stop_event.set()
        logger.info(
            "worker %s stopping, %d jobs running",
            self._label(),
            self._hand.busy,
            extra={"action": "worker_stopping", "worker_id": self.worker_id},
        )
        self._give_back(self._hand.ready)
        await self._presence.drain()
        await self._until_idle(self.shutdown_graceful_timeout, self._enough, self._hard_stop)
        if self._hand:
            logger.warning(
                "%d jobs still run: stopping them, they will run again",
                len(self._hand),
                extra={"action": "jobs_interrupted"},
            )
            self._give_back(self._hand)
            if self._hard_stop.is_set():
                await self._until_idle(1.0)
            else:
                await self._until_idle(self._kill_timeout, self._hard_stop)
        await self._presence.leave()
        left = [job for job in self._hand if not job.fenced]
        if left:
            self._abandon(left)
        logger.info("worker %s stopped", self._label(), extra={"action": "worker_stopped"})

    async def _until_idle(self, seconds: float | None, *hurried: asyncio.Event) -> None:
        """Wait until every job's end is durable, the time is over, or one of the events comes."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._hand and not any(event.is_set() for event in hurried):
            self._work_event.clear()
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return
            await pause(remaining, self._work_event, *hurried)

    def _abandon(self, left: Sequence[Claimed]) -> None:
        message = f"{len(left)} jobs did not stop in time and are left to be rescued: " + ", ".join(
            f"{job.id} ({job.task_name})" for job in left[:10]
        )
        logger.error(message, extra={"action": "jobs_abandoned"})
        if self._heeds_signals and any(self._executor.cancels_by_task(job) for job in left):
            # A coroutine that ignores its cancellation would hold the loop, and so the process, for ever.
            logging.shutdown()
            os._exit(1)
        raise ShutdownIncomplete(
            message, hint="raise the shutdown timeout, or let the task look at context.should_abort()"
        )

    async def _close(self) -> None:
        self._presence.forget()
        for link in (self._claims, self._keeping, self._reports, self._ticking):
            await link.close()
        await self._executor.close()
        self.worker_id = None
