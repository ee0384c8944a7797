"""The clock of a process: `procjobs.tick_schedules()` at each slot, and now and then for what changed meanwhile."""

from __future__ import annotations

import asyncio
import logging

from procjobs.db import Link
from procjobs.engine.supervision import pause

__all__ = ["Ticker"]

logger = logging.getLogger("procjobs.schedules")

#: Seconds: a schedule that somebody made or changed meanwhile is seen within this time.
LONGEST_PAUSE = 1.0
#: The longest that `tick` says, when no slot is near.
_FAR = 60.0
#: Seconds until the clock looks again at slots that are still due: somebody holds their schedule, or a lock they need.
_STILL_DUE = 0.1
#: Timers are early by up to a millisecond.
_MARGIN = 0.002


class Ticker:
    """Fires due slots over one connection. Any number of them may in a fleet: each slot fires once.

    by:       how the ledger names this clock.
    stopping: ends `run`; a process that leaves starts nothing more.
    """

    def __init__(self, link: Link, by: str, stopping: asyncio.Event) -> None:
        self._link = link
        self._by = by
        self._stopping = stopping

    async def tick(self) -> float:
        """Fire what is due; seconds until it is worth looking again. Raises DatabaseUnavailable."""
        ((fired, due_in),) = await self._link.fetch(
            "select fired, due_in from procjobs.tick_schedules(%s, 500)", (self._by,)
        )
        if fired:
            logger.info("slots fired: %d", fired, extra={"action": "slots_fired", "slots": fired})
        if due_in is None:
            return _FAR
        if due_in <= 0:
            return 0.0 if fired else _STILL_DUE
        return float(min(due_in, _FAR))

    async def run(self) -> None:
        """Tick until stopped."""
        while not self._stopping.is_set():
            wait = await self.tick()
            await pause(min(wait + _MARGIN, LONGEST_PAUSE), self._stopping)
