"""The victim with one of the worker's own safeguards taken out: CHAOS_MUTANT names it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress
from typing import Any

from procjobs.db import Link
from procjobs.engine import processes
from procjobs.engine.acknowledge import Acknowledger
from procjobs.engine.heartbeat import Heartbeat
from procjobs.engine.presence import Presence
from procjobs.engine.worker import Worker
from procjobs.errors import DatabaseError
from tests.chaos.victim import app

__all__ = ["app"]

_serve = processes._serve


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


def heartbeat_ends_with_sigterm() -> None:
    """A worker that leaves does not say any more that it lives."""

    async def drain(self: Any) -> None:
        self.forget()

    Presence.drain = drain  # type: ignore[method-assign]


def hanging_heartbeat_is_waited_for() -> None:
    """A beat without an answer is not given up."""
    Heartbeat.hasten = lambda self: None  # type: ignore[method-assign]


def hints_are_believed() -> None:
    """Who says by NOTIFY that a job is to be cancelled is believed."""

    async def listen(self: Any) -> None:
        link = Link(self._listen_target, "procjobs listen")
        async for payload, _ in link.listen(["procrastinate_any_queue_v1"]):
            self._work_event.set()
            with suppress(ValueError, TypeError, KeyError):
                self._abort([json.loads(payload)["job_id"]])

    Worker._listen = listen  # type: ignore[method-assign]


def processes_outlive_their_worker() -> None:
    """The process of a job does not look whether anybody waits for its answer."""
    processes._die_with = lambda *_: None
    processes._serve = serve


def serve(end: socket.socket) -> None:
    """In the child, which imports this module and so takes the safeguard out there too."""
    _serve(end)


def no_self_fence() -> None:
    """A worker that cannot reach the database goes on with what it runs."""

    async def watch(self: Any) -> None:
        await asyncio.Event().wait()

    Presence.watch = watch  # type: ignore[method-assign]


def results_are_dropped() -> None:
    """An end that cannot be reported is forgotten."""

    async def once(self: Any, query: Any, parameters: Any, size: int) -> Any:
        try:
            return await self._link.fetch(query, parameters), False
        except DatabaseError:
            return [], True

    Acknowledger._persist = once  # type: ignore[method-assign]


MUTANTS = {
    "hanging_heartbeat_is_waited_for": hanging_heartbeat_is_waited_for,
    "heartbeat_ends_with_sigterm": heartbeat_ends_with_sigterm,
    "heartbeat_on_the_loop": heartbeat_on_the_loop,
    "hints_are_believed": hints_are_believed,
    "no_self_fence": no_self_fence,
    "none": lambda: None,
    "processes_outlive_their_worker": processes_outlive_their_worker,
    "results_are_dropped": results_are_dropped,
}
MUTANTS[os.environ["CHAOS_MUTANT"]]()
