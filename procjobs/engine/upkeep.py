"""Upkeep: `procjobs.upkeep()` again and again, and at the moment when the next scheduled job is due."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from procjobs.db import Link

__all__ = ["Upkeep"]

#: Seconds between two rounds when nothing is due sooner.
TICK = 1.0
#: Seconds until a job that is due in a moment is looked for, and one that is still due after a round: another caller
#: is at it, or somebody's open transaction holds it.
_SOONEST, _STILL_DUE = 0.01, 0.1


class Upkeep:
    """Rounds of upkeep over one connection. Any number of callers in a fleet may do it; one at a time does.

    tick:        seconds between two rounds when nothing is due sooner.
    after_round: called after each round.
    """

    def __init__(self, link: Link, *, tick: float = TICK, after_round: Callable[[], None] | None = None) -> None:
        self._link = link
        self._tick = min(TICK, tick)
        self._after_round = after_round

    async def round(self) -> float | None:
        """One round; the seconds until the next scheduled job is due, None when there is none."""
        ((_, due_in),) = await self._link.fetch("select procjobs.stop_sessions(), procjobs.upkeep()")
        seconds: float | None = due_in
        return seconds

    async def run(self) -> None:
        """Rounds until cancelled."""
        while True:
            due_in = await self.round()
            if self._after_round is not None:
                self._after_round()
            await asyncio.sleep(self._until_next(due_in))

    def _until_next(self, due_in: float | None) -> float:
        if due_in is not None:
            soonest = max(_SOONEST if due_in > 0 else _STILL_DUE, due_in)
            if soonest < self._tick:
                return soonest
        return self._tick * random.uniform(0.9, 1.0)
