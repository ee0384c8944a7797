"""Waiting before another try, so that a fleet does not come back all at once."""

from __future__ import annotations

import asyncio
import random

__all__ = ["Backoff"]


class Backoff:
    """Doubling waits from `first` to `longest` seconds, each drawn from its upper half; `reset` after a success."""

    def __init__(self, first: float = 0.1, longest: float = 5.0) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait now."""
        wait: float = min(self._longest, self._first * 2 ** min(self._failures, 16))
        self._failures += 1
        return wait * random.uniform(0.5, 1.0)

    async def wait(self) -> None:
        await asyncio.sleep(self.next())
