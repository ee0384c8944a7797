"""The victim with one of the worker's own safeguards taken out: CHAOS_MUTANT names it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from procjobs.engine.acknowledge import Acknowledger
from procjobs.engine.heartbeat import Heartbeat
from procjobs.engine.presence import Presence
from procjobs.errors import DatabaseError
from tests.chaos.victim import app

__all__ = ["app"]


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


def no_self_fence() -> None:
    """A worker that cannot reach the database goes on with what it runs."""

    async def watch(self: Any) -> None:
        await asyncio.Event().wait()

    Presence.watch = watch  # type: ignore[method-assign]


def results_are_dropped() -> None:
    """An end that cannot be reported is forgotten."""

    async def once(self: Any, query: Any, parameters: Any) -> Any:
        try:
            return await self._link.fetch(query, parameters), False
        except DatabaseError:
            return [], True

    Acknowledger._persist = once  # type: ignore[method-assign]


MUTANTS = {
    "heartbeat_on_the_loop": heartbeat_on_the_loop,
    "no_self_fence": no_self_fence,
    "none": lambda: None,
    "results_are_dropped": results_are_dropped,
}
MUTANTS[os.environ["CHAOS_MUTANT"]]()
