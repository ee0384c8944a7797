"""Upkeep: `procjobs.upkeep()` again and again, and `procjobs.promote_ready()` at the moments when something is due."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from procjobs.db import Link

__all__ = ["Upkeep"]

#: Seconds between two rounds of all chores.
TICK = 1.0
#: Seconds until what is due in a moment is looked for, and what is still due after a look: another caller is at it, or
#: somebody's open transaction holds it.
_SOONEST, _STILL_DUE = 0.01, 0.1


class Upkeep:
    """Rounds of upkeep over one connection. Any number of callers in a fleet may do it; one at a time does.

    tick:        seconds between two rounds of all chores.
    after_round: called after each of them.
    """

    def __init__(self, link: Link, *, tick: float = TICK, after_round: Callable[[], None] | None = None) -> None:
        self._link = link
        self._tick = min(TICK, tick)
        self._after_round = after_round

    async def round(self) -> float | None:
        """All chores; the seconds until the next scheduled job is due, None when there is none."""
        ((_, due_in),) = await self._link.fetch("select procjobs.stop_sessions(), procjobs.upkeep()")
        seconds: float | None = due_in
        return seconds

    async def promote(self) -> float | None:
        """Only what is due at a moment, and quick; returns what round does."""
        ((due_in,),) = await self._link.fetch("select procjobs.promote_ready()")
        seconds: float | None = due_in
        return seconds

    async def run(self) -> None:
        """Rounds until cancelled."""
        next_round = time.monotonic()
        while True:
            if (now := time.monotonic()) >= next_round:
                next_round = now + self._tick * random.uniform(0.9, 1.0)
                await self.promote()  # nobody who is due waits for the chores
                due_in = await self.round()
                if self._after_round is not None:
                    self._after_round()
            else:
                due_in = await self.promote()
            await asyncio.sleep(self._until_next(due_in, next_round - time.monotonic()))

    @staticmethod
    def _until_next(due_in: float | None, round_in: float) -> float:
        if due_in is None:
            return max(0.0, round_in)
        return max(0.0, min(round_in, max(_SOONEST if due_in > 0 else _STILL_DUE, due_in)))
