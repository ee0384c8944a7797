"""The victim with one of the worker's own safeguards taken out: CHAOS_MUTANT names it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from procrastinate.exceptions import TaskNotFound

from procjobs import errors
from procjobs.db import Link, SyncLink
from procjobs.engine import acknowledge, claimed, processes, supervision, worker
from procjobs.engine.acknowledge import Acknowledger
from procjobs.engine.execution import Executor
from procjobs.engine.heartbeat import Heartbeat
from procjobs.engine.presence import Presence
from procjobs.engine.worker import Worker
from procjobs.errors import DatabaseError, DatabaseUnavailable
from tests.chaos.victim import app

__all__ = ["app"]

MUTANTS: dict[str, Callable[[], None]] = {"none": lambda: None}

_serve = processes._serve


def mutant(function: Callable[[], None]) -> Callable[[], None]:
    """What takes a safeguard out, to be called by its name."""
    MUTANTS[function.__name__] = function
    return function


@mutant
def heartbeat_on_the_loop() -> None:
    """The heart beats on the event loop, which jobs can hold."""

    async def run(self: Any) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(self._interval)
            await asyncio.to_thread(self._link.fetch, "select alive, abort_ids from procjobs.heartbeat(%s)",
                                    (self._worker_id,))  # fmt: skip

    def start(self: Any) -> None:
        self._beating = asyncio.get_running_loop().create_task(run(self))

    Heartbeat.start = start  # type: ignore[method-assign]
    Heartbeat.silence = property(lambda self: 0.0)  # type: ignore[assignment, method-assign]


@mutant
def heartbeat_ends_with_sigterm() -> None:
    """A worker that leaves does not say any more that it lives."""

    async def drain(self: Any) -> None:
        self.forget()

    Presence.drain = drain  # type: ignore[method-assign]


@mutant
def hanging_heartbeat_is_waited_for() -> None:
    """A beat without an answer is not given up."""
    Heartbeat.hasten = lambda self: None  # type: ignore[method-assign]


@mutant
def hints_are_believed() -> None:
    """Who says by NOTIFY that a job is to be cancelled is believed."""

    async def listen(self: Any) -> None:
        link = Link(self._listen_target, "procjobs listen")
        async for payload, _ in link.listen(["procrastinate_any_queue_v1"]):
            self._work_event.set()
            with suppress(ValueError, TypeError, KeyError):
                self._abort([json.loads(payload)["job_id"]])

    Worker._listen = listen  # type: ignore[method-assign]


@mutant
def processes_outlive_their_worker() -> None:
    """The process of a job does not look whether anybody waits for its answer."""
    processes._die_with = lambda *_: None
    processes._serve = serve


def serve(end: socket.socket) -> None:
    """In the child, which imports this module and so takes the safeguard out there too."""
    _serve(end)


@mutant
def no_self_fence() -> None:
    """A worker that cannot reach the database goes on with what it runs."""

    async def watch(self: Any) -> None:
        await asyncio.Event().wait()

    Presence.watch = watch  # type: ignore[method-assign]


@mutant
def results_are_dropped() -> None:
    """An end that cannot be reported is forgotten."""

    async def once(self: Any, query: Any, parameters: Any, size: int) -> Any:
        try:
            return await self._link.fetch(query, parameters), False
        except DatabaseError:
            return [], True

    Acknowledger._persist = once  # type: ignore[method-assign]


@mutant
def an_outage_ends_the_claims() -> None:
    """A worker that cannot reach the database to claim has failed."""
    claim = Worker._claim

    async def once(self: Any, room: int) -> Any:
        try:
            return await claim(self, room)
        except DatabaseUnavailable as error:
            raise RuntimeError("there is no database") from error

    Worker._claim = once  # type: ignore[method-assign]


@mutant
def arguments_are_read_with_the_claim() -> None:
    """The driver makes Python of them, for all jobs of a claim at once."""
    vars(worker)["CLAIM"] = claimed.CLAIM.replace(" args,", " args::jsonb,")
    Executor._read = lambda self, job: job.args  # type: ignore[method-assign, assignment, return-value]


@mutant
def claims_stay_as_large() -> None:
    """A claim that took too long is asked for again as it was."""
    worker._TOOK_TOO_LONG = ""


@mutant
def conflicts_are_final() -> None:
    """Deadlocks, conflicts and timeouts are errors like any other."""
    errors._IN_THE_WAY = ()  # type: ignore[assignment]


@mutant
def ends_are_tried_once() -> None:
    """Whatever the database says to the end of a run is its last word."""

    async def once(self: Any, query: Any, parameters: Any, size: int) -> Any:
        return await self._link.fetch(query, parameters), False

    Acknowledger._persist = once  # type: ignore[method-assign]
    acknowledge._UNACCEPTABLE = ("",)  # type: ignore[assignment]


@mutant
def heartbeat_ends_with_its_connection() -> None:
    """The thread of the heart ends when it cannot say that it beats."""
    fetch = SyncLink.fetch

    def once(self: Any, query: Any, parameters: Any = ()) -> Any:
        try:
            return fetch(self, query, parameters)
        except DatabaseError as error:
            raise SystemExit from error

    SyncLink.fetch = once  # type: ignore[method-assign]


@mutant
def second_signal_is_like_the_first() -> None:
    """However often it is told to stop, it waits for its jobs."""
    Worker._on_signal = Worker.stop  # type: ignore[method-assign]


@mutant
def sides_end_with_their_connection() -> None:
    """What runs beside the claims does not start again."""

    async def once(name: str, side: supervision.Side) -> None:
        with suppress(DatabaseError):
            await side()

    supervision._supervise = once


@mutant
def standbys_are_servers_like_others() -> None:
    """The connection to a server that only reads is kept."""
    errors._UNAVAILABLE = tuple(state for state in errors._UNAVAILABLE if state != "25006")  # type: ignore[assignment]


@mutant
def threads_are_waited_for() -> None:
    """A process ends when all its threads have."""
    supervision._leave_stuck_threads = lambda *_: None


@mutant
def unknown_tasks_fail() -> None:
    """A job that came by mistake has failed."""
    judge = Executor._judge

    def failed(self: Any, plan: Any, job: Any, error: BaseException) -> Any:
        if isinstance(error, TaskNotFound):
            return {"outcome": "failed", "error_class": "TaskNotFound"}
        return judge(self, plan, job, error)

    Executor._judge = failed  # type: ignore[method-assign]


MUTANTS[os.environ["CHAOS_MUTANT"]]()
