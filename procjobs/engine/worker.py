"""The worker: claims jobs, runs them, and reports how they ended, through outages, cancellation and deploys.

One worker is one asyncio loop with connections of its own (claims, acknowledgements, upkeep, aborts, LISTEN) and one
more for its heartbeat thread. `run` lives as long as the worker; everything beside the claim loop is supervised: it
fails, waits with jitter and starts again. What a worker holds:

    ready    claimed ahead, about ten milliseconds of work, not started; given back on shutdown
    busy     started, until the acknowledgement is durable: only then is the slot free
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from procrastinate.job_context import AbortReason
from procrastinate.jobs import DeleteJobCondition
from procrastinate.manager import get_channel_for_queues
from procrastinate.worker import Worker as UpstreamWorker

from procjobs.db import Link, Target
from procjobs.engine.acknowledge import Acknowledger
from procjobs.engine.backoff import Backoff
from procjobs.engine.claimed import CLAIM, Claimed
from procjobs.engine.endings import log_settlement, log_success
from procjobs.engine.execution import Executor
from procjobs.engine.heartbeat import Heartbeat
from procjobs.engine.periodic import Periodic
from procjobs.engine.registration import describe_tasks, register
from procjobs.errors import DatabaseError, DatabaseUnavailable, ProcjobsError, WorkerGone

if TYPE_CHECKING:
    from procrastinate import App

__all__ = ["ShutdownIncomplete", "Worker"]

logger = logging.getLogger("procjobs.worker")

#: Seconds of work to hold beyond the slots, and the most jobs that may be.
_PREFETCH_SECONDS = 0.010
_PREFETCH_MOST = 500
#: Seconds after which claimed jobs that found no free slot are given back to others.
_PREFETCH_STALE = 1.0
_TICK = 1.0


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
        self._executor = Executor(self)
        self._claims = Link(target, "procjobs claim")
        self._upkeep = Link(target, "procjobs upkeep")
        self._reports = Link(target, "procjobs finish")
        self._acknowledger = Acknowledger(
            self._reports,
            self._on_durable,
            finished_jobs=self._disposal(finished_jobs),
            delete_failed=self.delete_jobs is DeleteJobCondition.ALWAYS,
        )
        self._heartbeat: Heartbeat | None = None
        self._held: dict[int, Claimed] = {}
        self._ready: deque[Claimed] = deque()
        self._busy = 0
        self._rate = 0.0
        self._rated_at = 0.0
        self._work_event = asyncio.Event()
        self._abort_event = asyncio.Event()
        self._hard_stop = asyncio.Event()
        self._gone = False
        self._orphans_possible = False

    def _disposal(self, finished_jobs: str) -> str:
        if self.delete_jobs in (DeleteJobCondition.ALWAYS, DeleteJobCondition.SUCCESSFUL):
            return "delete"
        return finished_jobs

    # -- lifecycle -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until stopped (or, with wait=False, until nothing is left to do).

        Raises ShutdownIncomplete when jobs had to be left behind, DatabaseError when the worker cannot start.
        """
        self._stop_event.clear()
        self._hard_stop.clear()
        self.run_task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        main = asyncio.create_task(self._main(), name="procjobs worker")
        try:
            await asyncio.shield(main)
        except asyncio.CancelledError:
            self.stop()  # type: ignore[no-untyped-call]
            await main
            raise
        finally:
            self._loop = None

    async def _main(self) -> None:
        sides: list[asyncio.Task[None]] = []
        try:
            with self._signals():  # from before the registration: a worker that others see alive stops in order
                await self._enter_when_possible()
                sides += [
                    asyncio.create_task(self._supervise(name, side), name=f"procjobs {name}")
                    for name, side in self._side_jobs().items()
                ]
                try:
                    await self._claim_until_stopped()
                finally:
                    await self._leave()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            await self._close()

    def _side_jobs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        sides: dict[str, Callable[[], Awaitable[None]]] = {
            "acknowledge": self._acknowledger.run,
            "upkeep": self._run_upkeep,
            "lease": self._watch_lease,
            "aborts": self._watch_aborts,
            "periodic": Periodic(self.app.periodic_registry, self._last_slot, **self.app.periodic_defaults).run,
        }
        if self.listen_notify:
            sides["listen"] = self._listen
        return sides

    async def _enter_when_possible(self) -> None:
        """The connection worked when the app was opened: an outage since then is waited for."""
        backoff = Backoff()
        while not self._stop_event.is_set():
            try:
                await self._enter()
                return
            except DatabaseUnavailable as error:
                logger.warning("starting waits for the database: %s", error, extra={"action": "reconnecting"})
                await self._pause(backoff.next(), wakeable=False)

    async def _enter(self) -> None:
        """Register the tasks and this worker, and do one round of upkeep, so that what is due now is claimable now."""
        await register(self._upkeep, describe_tasks(self.app), self._label())
        await self._register()
        await self._upkeep.fetch("select procjobs.upkeep()")
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
        from procjobs import __version__

        self._gone = False
        ((worker_id,),) = await self._upkeep.fetch(
            "select procjobs.register_worker(%s, %s, %s, %s, %s::text[], %s::text[], %s, "
            "make_interval(secs => %s), make_interval(secs => %s))",
            (
                self._label(),
                socket.gethostname(),
                os.getpid(),
                __version__,
                self._queue_names(),
                sorted(self.app.tasks),
                self.concurrency,
                self.update_heartbeat_interval,
                self.stalled_worker_timeout,
            ),
        )
        self.worker_id = worker_id
        self._acknowledger.worker_id = worker_id
        if self._heartbeat is not None:
            self._heartbeat.stop(0)
        assert self._loop is not None
        self._heartbeat = Heartbeat(
            self._target,
            worker_id,
            self.update_heartbeat_interval,
            on_abort=self._from_thread(self._abort),
            on_dead=self._from_thread(self._lose_lease),
        )
        self._heartbeat.start()

    def _from_thread(self, function: Callable[..., None]) -> Callable[..., None]:
        loop = self._loop
        assert loop is not None

        def call(*arguments: Any) -> None:
            with suppress(RuntimeError):  # the loop closed meanwhile
                loop.call_soon_threadsafe(function, *arguments)

        return call

    def _queue_names(self) -> list[str] | None:
        return None if self.queues is None else list(self.queues)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First SIGTERM or SIGINT: stop gracefully. Second: leave at once."""
        if not self.install_signal_handlers or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if self._stop_event.is_set():
                logger.warning("second signal: leaving at once", extra={"action": "hard_stop"})
                self._hard_stop.set()
            self.stop()  # type: ignore[no-untyped-call]

        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number, handler in previous.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    async def _supervise(self, name: str, side: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                await side()
                return
            except DatabaseUnavailable as error:
                logger.warning("%s waits for the database: %s", name, error, extra={"action": "reconnecting"})
            except Exception:
                logger.exception("%s failed and starts again", name, extra={"action": "side_failed"})
            if time.monotonic() - began > 10:
                backoff.reset()
            await backoff.wait()

    # -- claiming --------------------------------------------------------------------------------------------------

    async def _claim_until_stopped(self) -> None:
        backoff = Backoff()
        while not self._stop_event.is_set():
            self._work_event.clear()
            room = self._room()
            if room <= 0:
                await self._pause(None)
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
        elif self._held:
            await self._pause(None if not claimed else 0.0)
        elif not claimed and not self._work_event.is_set():
            return False  # and nothing ended while we asked, which might have let others go
        return True

    async def _claim(self, room: int) -> list[Claimed]:
        if self._orphans_possible:
            ((count,),) = await self._claims.fetch(
                "select procjobs.release_unknown(%s, %s::bigint[])", (self.worker_id, list(self._held))
            )
            self._orphans_possible = False
            if count:
                logger.warning(
                    "gave back %d jobs whose claim had lost its reply", count, extra={"action": "orphans_released"}
                )
        rows = await self._claims.fetch(CLAIM, (self.worker_id, self._queue_names(), room))
        now = time.monotonic()
        return [Claimed(row, now) for row in rows]

    def _room(self) -> int:
        ahead = min(_PREFETCH_MOST, int(self._rate * _PREFETCH_SECONDS))
        return self.concurrency + ahead - len(self._held)

    def _take(self, jobs: Sequence[Claimed]) -> None:
        for job in jobs:
            self._held[job.id] = job
        self._ready.extend(jobs)
        self._start_ready()

    def _start_ready(self) -> None:
        while self._ready and self._busy < self.concurrency and not self._stop_event.is_set():
            job = self._ready.popleft()
            self._busy += 1
            job.task = asyncio.create_task(self._run_job(job))

    async def _pause(self, seconds: float | None, *, wakeable: bool = True) -> None:
        """Wait until there may be work, the worker is asked to stop, or the time is over."""
        waiters = [asyncio.ensure_future(self._stop_event.wait())]
        if wakeable:
            waiters.append(asyncio.ensure_future(self._work_event.wait()))
        try:
            await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()

    # -- running ---------------------------------------------------------------------------------------------------

    async def _run_job(self, job: Claimed) -> None:
        job.entered = True
        began = job.since = time.monotonic()
        logger.debug("job %s (%s) started", job.id, job.task_name)
        settlement = await self._executor.run(job)
        if settlement is None:
            if logger.isEnabledFor(logging.INFO):
                log_success(job, time.monotonic() - began)
            self._acknowledger.finished(job)
            return
        log_settlement(job, settlement, time.monotonic() - began)
        self._acknowledger.settled(job, settlement)

    def _on_durable(self, jobs: Sequence[Claimed]) -> None:
        """The database has the end of these jobs: their slots are free."""
        now = time.monotonic()
        for job in jobs:
            if self._held.get(job.id) is job:
                del self._held[job.id]
            if job.task is not None:
                self._busy -= 1
                job.task = None
        if jobs:
            passed = min(max(now - self._rated_at, 1e-4), 1.0)
            self._rate = 0.7 * self._rate + 0.3 * len(jobs) / passed
            self._rated_at = now
            self._start_ready()
            self._work_event.set()

    # -- cancelling ------------------------------------------------------------------------------------------------

    def _abort(self, job_ids: Iterable[int]) -> None:
        for job_id in job_ids:
            job = self._held.get(job_id)
            if job is not None and job.reason is None:
                self._interrupt(job, AbortReason.USER_REQUEST)

    def _interrupt(self, job: Claimed, reason: AbortReason) -> None:
        job.reason = reason
        if job.task is None:
            with suppress(ValueError):
                self._ready.remove(job)
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
        logger.error(
            "worker %s was declared dead: its %d jobs were given to others; registering again",
            self.worker_id,
            len(self._held),
            extra={"action": "lease_lost", "worker_id": self.worker_id},
        )
        for job in list(self._held.values()):
            job.fenced = True
            self._interrupt(job, AbortReason.SHUTDOWN)
        self._work_event.set()

    async def _watch_lease(self) -> None:
        """Fence ourselves: without a heartbeat for a whole lease others may run our jobs at any moment."""
        while True:
            await asyncio.sleep(min(self.update_heartbeat_interval, self.stalled_worker_timeout / 10))
            if self._heartbeat is None or self._heartbeat.silence < self.stalled_worker_timeout:
                continue
            stopping = [job for job in self._held.values() if job.reason is None]
            if stopping:
                logger.error(
                    "no heartbeat for %.1f s: stopping %d jobs, others may run them",
                    self._heartbeat.silence,
                    len(stopping),
                    extra={"action": "self_fenced"},
                )
            for job in stopping:
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
                if self._held:
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

    async def _run_upkeep(self) -> None:
        tick = min(_TICK, self.update_heartbeat_interval)
        while True:
            ((due_in,),) = await self._upkeep.fetch("select procjobs.upkeep()")
            self._give_back_stale()
            # Still due after upkeep: another worker is at it, or somebody's open transaction holds the job.
            soonest = 0.01 if due_in is None or due_in > 0 else 0.1
            wait = tick if due_in is None else min(tick, max(soonest, due_in))
            await asyncio.sleep(wait * random.uniform(0.9, 1.0) if wait == tick else wait)

    def _give_back_stale(self) -> None:
        """Jobs claimed ahead that found no slot for a while: somebody else may have one."""
        if self._ready and time.monotonic() - self._ready[0].since > _PREFETCH_STALE:
            self._rate = 0.0
            for job in list(self._ready):
                self._interrupt(job, AbortReason.SHUTDOWN)

    async def _last_slot(self, task: str, periodic_id: str) -> int | None:
        link = Link(self._target, "procjobs periodic")
        try:
            ((slot,),) = await link.fetch("select procjobs.last_periodic(%s, %s)", (task, periodic_id))
            found: int | None = slot
            return found
        finally:
            await link.close()

    # -- leaving ---------------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        self._stop_event.set()
        logger.info(
            "worker %s stopping, %d jobs running",
            self._label(),
            self._busy,
            extra={"action": "worker_stopping", "worker_id": self.worker_id},
        )
        for job in list(self._ready):
            self._interrupt(job, AbortReason.SHUTDOWN)
        await self._tell("select procjobs.drain_worker(%s)")
        await self._until_idle(self.shutdown_graceful_timeout)
        if self._held:
            logger.warning(
                "%d jobs still run: stopping them, they will run again",
                len(self._held),
                extra={"action": "jobs_interrupted"},
            )
            for job in list(self._held.values()):
                self._interrupt(job, AbortReason.SHUTDOWN)
            hurry = self._hard_stop.is_set()
            await self._until_idle(1.0 if hurry else self._kill_timeout, hastened=not hurry)
        if self._heartbeat is not None:
            await asyncio.to_thread(self._heartbeat.stop)
        await self._tell("select procjobs.stop_worker(%s)")
        left = [job for job in self._held.values() if not job.fenced]
        if left:
            self._abandon(left)
        logger.info("worker %s stopped", self._label(), extra={"action": "worker_stopped"})

    async def _until_idle(self, seconds: float | None, *, hastened: bool = True) -> None:
        """Wait until every job's end is durable, the time is over, or (hastened) a second signal comes."""
        deadline = None if seconds is None else time.monotonic() + seconds
        events = [self._work_event, self._hard_stop] if hastened else [self._work_event]
        while self._held and not (hastened and self._hard_stop.is_set()):
            self._work_event.clear()
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return
            waiters = [asyncio.ensure_future(event.wait()) for event in events]
            await asyncio.wait(waiters, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            for waiter in waiters:
                waiter.cancel()

    async def _tell(self, query: Any) -> None:
        """Say something to the database that it will also find out by itself."""
        link = Link(self._target, "procjobs leave", timeout=5.0)
        with suppress(DatabaseError):
            await link.fetch(query, (self.worker_id,))
        await link.close()

    def _abandon(self, left: Sequence[Claimed]) -> None:
        message = f"{len(left)} jobs did not stop in time and are left to be rescued: " + ", ".join(
            f"{job.id} ({job.task_name})" for job in left[:10]
        )
        logger.error(message, extra={"action": "jobs_abandoned"})
        if self.install_signal_handlers and any(self._executor.cancels_by_task(job) for job in left):
            # A coroutine that ignores its cancellation would hold the loop, and so the process, for ever.
            logging.shutdown()
            os._exit(1)
        raise ShutdownIncomplete(
            message, hint="raise the shutdown timeout, or let the task look at context.should_abort()"
        )

    async def _close(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop(0)
        for link in (self._claims, self._upkeep, self._reports):
            await link.close()
        await self._executor.close()
        self.worker_id = None
